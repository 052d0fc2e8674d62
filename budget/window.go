package budget

import "time"

// Window is the span over which a budget counts, in UTC.
type Window string

// The windows there are.
const (
	Hour  Window = "hour"
	Day   Window = "day"
	Week  Window = "week" // from Monday
	Month Window = "month"
	Total Window = "total" // never ends
)

// Valid says whether w is one of them.
func (w Window) Valid() bool {
	switch w {
	case Hour, Day, Week, Month, Total:
		return true
	}
	return false
}

// At returns the start and the end of the window in which t lies; both are zero
// for Total.
func (w Window) At(t time.Time) (start, end time.Time) {
	t = t.UTC()
	y, m, d := t.Date()
	switch w {
	case Hour:
		start = t.Truncate(time.Hour)
		return start, start.Add(time.Hour)
	case Day:
		start = time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
		return start, start.AddDate(0, 0, 1)
	case Week:
		start = time.Date(y, m, d-(int(t.Weekday())+6)%7, 0, 0, 0, 0, time.UTC)
		return start, start.AddDate(0, 0, 7)
	case Month:
		start = time.Date(y, m, 1, 0, 0, 0, 0, time.UTC)
		return start, start.AddDate(0, 1, 0)
	}
	return time.Time{}, time.Time{}
}

// Name names the window that begins at start, with its generation: opaque to
// gateways.
func (w Window) Name(start time.Time) string {
	switch w {
	case Hour:
		return start.UTC().Format("2006-01-02T15") + ".0"
	case Total:
		return "total.0"
	}
	return start.UTC().Format("2006-01-02") + ".0"
}
