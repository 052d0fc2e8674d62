package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/controlplane"
)

// devTokensFile holds the ids that dev minted and has to revoke; no strings.
const devTokensFile = "dev-tokens.json"

// devTokens are the strings that a start of dev prints, by purpose.
type devTokens struct {
	General        string `json:"general"`
	Integration    string `json:"integration"`
	GatewayRuntime string `json:"gateway_runtime"`
}

// mintDev makes a token for each profile and revokes those of the start before.
func mintDev(ctx context.Context, data *dataDir, d devPlane) (*devTokens, error) {
	c, err := d.client()
	if err != nil {
		return nil, err
	}
	path := data.file(devTokensFile)
	before, err := readIDs(path)
	if err != nil {
		return nil, err
	}
	var t devTokens
	var now []string
	for _, m := range []struct {
		purpose  abac.Purpose
		bindings *abac.Bindings
		string   *string
	}{
		{abac.General, nil, &t.General},
		{abac.Integration, &abac.Bindings{Providers: []string{d.target}, Models: []string{devModel}}, &t.Integration},
		{abac.GatewayRuntime, &abac.Bindings{GatewayID: &d.gatewayID}, &t.GatewayRuntime},
	} {
		var res minted
		body := createBody{Name: "dev-" + string(m.purpose), Purpose: string(m.purpose), Bindings: m.bindings}
		if err := c.Call(ctx, http.MethodPost, "/v1/tokens", body, &res); err != nil {
			return nil, fmt.Errorf("mint the %s token: %w", m.purpose, err)
		}
		*m.string = res.Token
		now = append(now, res.ID)
		// At each step the file knows all that is out, so that a kill leaves nothing behind for long.
		if err := writeIDs(path, append(now, before...)); err != nil {
			return nil, err
		}
	}
	for _, id := range before {
		err := c.Call(ctx, http.MethodPost, tokenPath(id, "revoke"), nil, nil)
		var api *controlplane.APIError
		gone := errors.As(err, &api) && (api.Status == http.StatusNotFound || api.Status == http.StatusConflict)
		if err != nil && !gone {
			return nil, fmt.Errorf("revoke %s, a token of the start before: %w", id, err)
		}
	}
	return &t, writeIDs(path, now)
}

func readIDs(path string) (ids []string, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &ids)
	}
	if err != nil {
		return nil, fmt.Errorf("read the ids of the tokens of the start before in %s: %w", path, err)
	}
	return ids, nil
}

func writeIDs(path string, ids []string) error {
	b, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	return writeWhole(path, append(b, '\n'))
}
