package dialect

import (
	"hash/maphash"
	"unicode"
	"unicode/utf8"
)

// fewKeys is how many keys of an object are compared without a map.
const fewKeys = 32

// keySet finds two keys of one object that some reader takes for the same: equal
// after unescaping and under Unicode simple folding, which is how Go's
// encoding/json matches fields.
type keySet struct {
	n    int
	few  [fewKeys]uint64
	many map[uint64]struct{} // all of them, once they are more than a few
	fold [64]byte
}

// seed spreads keys that a caller chose; it holds no state.
var seed = maphash.MakeSeed()

// add notes a key that is unescaped and says whether it is new. Keys meet by 64
// bits under a seed that no caller knows: two that differ and meet are refused by
// mistake, once in a great many bodies; two that are the same are never let by.
func (k *keySet) add(key []byte) bool {
	h := maphash.Bytes(seed, appendFolded(k.fold[:0], key))
	if k.many == nil {
		for _, other := range k.few[:k.n] {
			if other == h {
				return false
			}
		}
		if k.n < fewKeys {
			k.few[k.n] = h
			k.n++
			return true
		}
		k.many = make(map[uint64]struct{}, 2*fewKeys)
		for _, other := range k.few {
			k.many[other] = struct{}{}
		}
	}
	if _, known := k.many[h]; known {
		return false
	}
	k.many[h] = struct{}{}
	return true
}

// appendFolded appends a key with each rune as the least of those that fold to
// the same.
func appendFolded(dst, key []byte) []byte {
	for i := 0; i < len(key); {
		c := key[i]
		if c < utf8.RuneSelf {
			if c >= 'a' && c <= 'z' {
				c -= 'a' - 'A'
			}
			dst = append(dst, c)
			i++
			continue
		}
		r, n := utf8.DecodeRune(key[i:])
		i += n
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		dst = utf8.AppendRune(dst, least)
	}
	return dst
}
