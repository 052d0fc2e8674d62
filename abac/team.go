package abac

// Team is what is known of a team, as control plane and gateway tell each other. A
// team that nobody has a record of stands like any other.
type Team struct {
	ID       string `json:"id"`
	Deleted  bool   `json:"deleted"`  // its tokens are denied
	Revision int64  `json:"revision"` // global revision of the last change
}

// TeamSet is a set of teams. It is immutable and safe for concurrent use; nil is the
// empty one.
type TeamSet struct{ ids map[string]struct{} }

// NewTeamSet returns the set of these ids.
func NewTeamSet(ids ...string) *TeamSet {
	s := &TeamSet{ids: make(map[string]struct{}, len(ids))}
	for _, id := range ids {
		s.ids[id] = struct{}{}
	}
	return s
}

// Has says whether a team is in the set. It does not allocate.
func (s *TeamSet) Has(id string) bool {
	if s == nil {
		return false
	}
	_, in := s.ids[id]
	return in
}
