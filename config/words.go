package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

var units = []struct {
	name  string
	shift uint
}{{"GiB", 30}, {"MiB", 20}, {"KiB", 10}}

// parseSize reads digits, or digits and a unit of 1024s.
func parseSize(s string) (int64, bool) {
	var shift uint
	for _, u := range units {
		if digits, ok := strings.CutSuffix(s, u.name); ok {
			s, shift = digits, u.shift
			break
		}
	}
	i, err := strconv.ParseInt(s, 10, 64)
	if err != nil || i < 0 || s[0] == '+' || i > (1<<62)>>shift {
		return 0, false
	}
	return i << shift, true
}

func sizeText(n int64) string {
	for _, u := range units {
		if n >= 1<<u.shift && n%(1<<u.shift) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// durationText drops the zeros that time.Duration writes: 10m, not 10m0s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// printable is a key as it may be shown: one that is not like a key of ours may be
// anything, a secret too.
func printable(key string) string {
	if key == "" || len(key) > 32 {
		return "…"
	}
	for _, c := range []byte(key) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' {
			return "…"
		}
	}
	return key
}

// didYouMean is a hint at the nearest of names, or "" when none is near.
func didYouMean(s string, names []string) string {
	best, at := max(1, len(s)/3), ""
	if len(s) > 64 {
		return ""
	}
	s = strings.ToLower(s)
	for _, n := range names {
		d := distance(s, n)
		if len(s) >= 4 && (strings.HasPrefix(n, s) || strings.HasPrefix(s, n)) {
			d = 1
		}
		if d <= best && d < len(n) && (at == "" || d < best) {
			best, at = d, n
		}
	}
	if at == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", at)
}

// distance is how many characters must be put in, taken out or replaced.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
