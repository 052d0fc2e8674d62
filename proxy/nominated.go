package proxy

import "bytes"

// maxNominated bounds the names that are compared with each line; where a client
// nominates more, nothing of its own passes.
const maxNominated = 32

// nominate notes what a Connection header names: it is for this connection alone
// (RFC 9110 §7.6.1). Nobody may nominate what a call can't be read without.
func (h *headers) nominate(value []byte) {
	for name := range bytes.SplitSeq(value, []byte{','}) {
		name = trimOWS(name)
		if len(name) == 0 || foldsTo(name, "keep-alive") || foldsTo(name, "close") || foldsTo(name, "content-type") {
			continue
		}
		if len(h.nominated) <= maxNominated {
			h.nominated = append(h.nominated, name)
		}
	}
}

// keeps says whether a header line is not one that the client nominated.
func (h *headers) keeps(line []byte) bool {
	name, _, _ := bytes.Cut(line, []byte{':'})
	if len(h.nominated) > maxNominated {
		return foldsTo(name, "content-type")
	}
	for _, n := range h.nominated {
		if bytes.EqualFold(name, n) {
			return false
		}
	}
	return true
}
