package rig

import (
	"fmt"
	"slices"
)

// Part takes of all that share of work which part, i/n, names: the longest that is
// left goes to the share that has least so far.
func Part[T any](all []T, part string, seconds func(T) int) ([]T, error) {
	var i, n int
	if _, err := fmt.Sscanf(part+" ", "%d/%d ", &i, &n); err != nil || i < 1 || i > n {
		return nil, fmt.Errorf("-part is i/n with i from 1 to n, not %q", part)
	}
	order := make([]int, len(all))
	for at := range order {
		order[at] = at
	}
	slices.SortStableFunc(order, func(a, b int) int { return seconds(all[b]) - seconds(all[a]) })
	sums := make([]int, n)
	var mine []int
	for _, at := range order {
		least := slices.Index(sums, slices.Min(sums))
		sums[least] += seconds(all[at])
		if least == i-1 {
			mine = append(mine, at)
		}
	}
	slices.Sort(mine)
	chosen := make([]T, len(mine))
	for k, at := range mine {
		chosen[k] = all[at]
	}
	return chosen, nil
}
