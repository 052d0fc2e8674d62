package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/config"
)

// priceRow is what a model costs at one of its targets. Amounts are USD per million
// tokens, request USD each; null where nobody gave one and none stands in for it.
type priceRow struct {
	Model    string  `json:"model"`
	Target   string  `json:"target"`
	Upstream string  `json:"upstream_model"` // "": as requested
	Known    bool    `json:"known"`          // whether a usd budget can bound a call of text
	Input    *string `json:"input"`
	Cached   *string `json:"cached_input"`
	Write    *string `json:"cache_write"`
	Output   *string `json:"output"`
	Reason   *string `json:"reasoning"`
	AudioIn  *string `json:"audio_input"`
	AudioOut *string `json:"audio_output"`
	Request  *string `json:"request"`

	where string // in the file
}

func priceCommand() *command {
	var o output
	var path string
	c := newCommand("price", "", "lists what each model costs at each target, and where no price is known")
	c.long = "Prices come from the configuration file alone: USD per million tokens, and USD for each request. Shown is what counts:\n" +
		"cached_input and cache_write cost input, and reasoning costs output, where the file gives them no price of their own."
	configFlag(c, &path)
	o.add(c, "prints the models' names alone")
	c.run = func(_ context.Context, p program) error {
		if err := o.check(); err != nil {
			return err
		}
		cfg, err := loadConfig(p, path)
		if err != nil {
			return err
		}
		rows := prices(cfg)
		raw, err := json.Marshal(map[string]any{"data": rows})
		if err != nil {
			return err
		}
		var names []string
		for _, m := range cfg.Models {
			names = append(names, m.Name)
		}
		return o.print(p, raw, strings.Join(names, "\n"), func() string { return priceTable(rows) })
	}
	return c
}

// prices lists every model at every target, in the file's order.
func prices(cfg *config.Config) []priceRow {
	rows := []priceRow{}
	for i := range cfg.Models {
		rows = append(rows, pricesOf(&cfg.Models[i])...)
	}
	return rows
}

func pricesOf(m *config.Model) []priceRow {
	rows := make([]priceRow, len(m.Targets))
	for i, t := range m.Targets {
		price := t.Price
		if price == nil {
			price = m.Price
		}
		rows[i] = priceRow{Model: m.Name, Target: t.ID, Upstream: t.Model, where: "the price of model " + m.Name}
		if t.Price != nil {
			rows[i].where += " at target " + t.ID
		}
		if price != nil {
			rows[i].fill(price)
		}
	}
	return rows
}

func (r *priceRow) fill(p *config.Price) {
	// A price of the file is in pico-USD a token, which is µUSD per million.
	million := func(list ...*int64) *string {
		for _, n := range list {
			if n != nil {
				s := budget.USD.Format(*n * 1000)
				return &s
			}
		}
		return nil
	}
	r.Input, r.Output = million(p.Input), million(p.Output)
	r.Cached, r.Write, r.Reason = million(p.CachedInput, p.Input), million(p.CacheWrite, p.Input), million(p.Reasoning, p.Output)
	r.AudioIn, r.AudioOut = million(p.AudioInput), million(p.AudioOutput)
	if p.Request != nil {
		s := budget.USD.Format(*p.Request)
		r.Request = &s
	}
	r.Known = p.Flat() || r.Input != nil && r.Output != nil
}

func priceTable(rows []priceRow) string {
	lines := []string{"MODEL\tTARGET\tUPSTREAM\tINPUT\tCACHED\tWRITE\tOUTPUT\tREASONING\tAUDIO IN\tAUDIO OUT\tREQUEST"}
	var unknown []string
	for _, r := range rows {
		lines = append(lines, cells(printable(r.Model), r.Target, printable(r.Upstream), known(r.Input), known(r.Cached), known(r.Write),
			known(r.Output), known(r.Reason), known(r.AudioIn), known(r.AudioOut), deref(r.Request)))
		if note := r.missing(); note != "" && !slices.Contains(unknown, note) {
			unknown = append(unknown, note)
		}
	}
	text := columns(lines...) + "\nUSD per million tokens; REQUEST in USD each.\n"
	if len(unknown) == 0 {
		return text
	}
	return text + "\nWithout a price a call under an enforced usd budget is denied (price_unknown). Give:\n  " + strings.Join(unknown, "\n  ") + "\n"
}

// missing says where to put what a usd budget lacks.
func (r *priceRow) missing() string {
	if r.Known {
		return ""
	}
	var keys []string
	if r.Input == nil {
		keys = append(keys, "input")
	}
	if r.Output == nil {
		keys = append(keys, "output")
	}
	if keys == nil {
		return ""
	}
	return fmt.Sprintf("%s: %s", printable(r.where), strings.Join(keys, ", "))
}

func known(s *string) string {
	if s == nil {
		return "unknown"
	}
	return *s
}
