package controlplane

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/budget"
	"github.com/keeptrusts/gateway/controlplane/store"
)

// fixed are the fields of a profile that a patch can't change, and what does.
var fixed = map[string]string{
	"id": "", "purpose": "mint another token", "principal_type": "mint another token", "org_id": "mint another token",
	"status": "use revoke, quarantine or release", "revision": "", "hint": "", "created_at": "", "last_used_at": "",
	"rotated_from": "", "token": "use rotate", "sha256": "use rotate",
}

func (s *Server) patchToken(c *call) (int, any, error) {
	wanted, err := ifMatch(c.r.Header)
	if err != nil {
		return 0, nil, err
	}
	if err := patchKeys(c.body); err != nil {
		return 0, nil, err
	}
	ctx := c.r.Context()
	var p abac.Profile
	err = s.change(ctx, &p.OrgID, func(tx *store.Tx) ([]budget.Recall, error) {
		t, err := tx.Token(ctx, c.token)
		if err != nil {
			return nil, err
		}
		before := t.Profile
		if before.Status == abac.Revoked {
			return nil, errRevoked(&before)
		}
		if wanted != nil && !slices.Contains(wanted, before.Revision) {
			return nil, refuse("revision_mismatch", "The token is at revision %d by now. Read it again and decide anew.", before.Revision)
		}
		if p, err = patched(before, c.body); err != nil {
			return nil, err
		}
		var recalls []budget.Recall
		if namesBudgets(c.body) {
			if recalls, err = s.bound(c, tx, &p); err != nil {
				return nil, err
			}
		}
		if same(&before, &p) {
			return recalls, nil
		}
		t.Profile = p
		if err := tx.Change(ctx, &t, eventUpdated); err != nil {
			return nil, err
		}
		p = t.Profile
		return recalls, audit(ctx, tx, change{c.who.name(), eventUpdated, &before, &p})
	})
	if err != nil {
		return 0, nil, err
	}
	c.etag(&p)
	return http.StatusOK, p, nil
}

// namesBudgets says whether a patch brings budgets. What a token is bound to already
// is not compared again: the budget may have been changed since.
func namesBudgets(o object) bool {
	b, _ := o["bindings"].(object)
	return b["budgets"] != nil
}

func errRevoked(p *abac.Profile) error {
	return refuse(codeTargetRevoked, "Token %s was revoked, which is final. Mint another.", p.ID)
}

// ifMatch reads the revisions that If-Match names; nil: any.
func ifMatch(h http.Header) ([]int64, error) {
	lines := h.Values("If-Match")
	if len(lines) == 0 {
		return nil, nil
	}
	list := []int64{}
	for _, tag := range strings.Split(strings.Join(lines, ","), ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" && len(lines) == 1 {
			return nil, nil
		}
		if len(tag) > 1 && tag[0] == '"' && tag[len(tag)-1] == '"' {
			tag = tag[1 : len(tag)-1]
		}
		n, err := strconv.ParseInt(tag, 10, 64)
		if err != nil {
			return nil, refuse("invalid_header", `If-Match must be a revision in quotes, such as "7".`).at("If-Match")
		}
		list = append(list, n)
	}
	return list, nil
}

func patchKeys(o object) error {
	for name, instead := range fixed {
		if _, ok := o[name]; !ok {
			continue
		}
		if instead != "" {
			instead = ": " + instead
		}
		return refuse("immutable_field", "%s can't be changed%s.", name, instead).at(name)
	}
	return known(o, "", "name", "bindings", "not_before", "expires_at", "widen")
}

// patched applies a JSON Merge Patch (RFC 7396) to a profile: what is not named
// stays, null removes, objects are merged, all else is replaced.
func patched(p abac.Profile, o object) (abac.Profile, error) {
	before := p
	var err error
	if _, ok := o["name"]; ok {
		if p.Name, err = required(o, "name"); err != nil {
			return p, err
		}
	}
	if _, ok := o["not_before"]; ok {
		if p.NotBefore, err = instant(o, "not_before"); err != nil {
			return p, err
		}
	}
	if _, ok := o["expires_at"]; ok {
		if p.ExpiresAt, err = instant(o, "expires_at"); err != nil {
			return p, err
		}
	}
	if v, ok := o["bindings"]; ok {
		if p.Bindings, err = mergedBindings(p.Bindings, v); err != nil {
			return p, err
		}
	}
	confirmed, given := o["widen"].(bool)
	if v, ok := o["widen"]; ok && v != nil && !given {
		return p, refuse("invalid_value", "widen must be true or false.").at("widen")
	}
	if err := validate(&p); err != nil {
		return p, err
	}
	if !confirmed {
		return p, widening(&before, &p)
	}
	return p, nil
}

func mergedBindings(b abac.Bindings, v any) (abac.Bindings, error) {
	change, ok := v.(object)
	if !ok {
		return bindings(v)
	}
	// Before the merge, where null takes an unknown key away.
	if err := knownBindings(change); err != nil {
		return b, err
	}
	raw, err := json.Marshal(b)
	if err != nil {
		panic("BUG: bindings do not encode: " + err.Error())
	}
	// The stored form is read as a body is, so that numbers stay as they are written.
	now, problem := readObject(raw, nil)
	if problem != nil {
		return b, problem
	}
	merged, err := bindings(merge(now, change))
	// What this version does not understand is a restriction that no patch may lose.
	merged.Invalid = append(slices.Clone(b.Invalid), merged.Invalid...)
	return merged, err
}

func merge(target, change object) object {
	for key, v := range change {
		switch v := v.(type) {
		case nil:
			delete(target, key)
		case object:
			inner, ok := target[key].(object)
			if !ok {
				inner = object{}
			}
			target[key] = merge(inner, v)
		default:
			target[key] = v
		}
	}
	return target
}

// widening refuses to take a filter from a general token unasked: without it the
// token reaches everything.
func widening(before, after *abac.Profile) error {
	if before.Purpose != abac.General {
		return nil
	}
	for _, f := range []struct {
		name          string
		before, after []string
	}{
		{"providers", before.Bindings.Providers, after.Bindings.Providers},
		{"models", before.Bindings.Models, after.Bindings.Models},
	} {
		if f.before != nil && f.after == nil {
			return refuse("widening_not_confirmed", `Without bindings.%s this token may use all %s. Send "widen": true if that is meant.`, f.name, f.name).at("bindings." + f.name)
		}
	}
	return nil
}

func same(a, b *abac.Profile) bool { return reflect.DeepEqual(a, b) }
