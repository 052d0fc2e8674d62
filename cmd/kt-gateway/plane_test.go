package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestTheControlPlaneAnswersEveryPathItself(t *testing.T) {
	named := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Who", name) })
	}
	h := planeHandler(named("api"), named("metrics"))
	for _, tt := range []struct{ method, path, want string }{
		{"GET", "/metrics", "metrics"},
		{"HEAD", "/metrics", "metrics"},
		{"POST", "/metrics", "api"},
		{"GET", "/metrics/", "api"},
		{"GET", "//metrics", "api"},
		{"GET", "/%6detrics", "api"},
		{"GET", "/v1/tokens", "api"},
		{"GET", "//v1/tokens", "api"},
		{"POST", "//v1/tokens", "api"},
		{"GET", "/v1/./tokens", "api"},
		{"GET", "/v1/../metrics", "api"},
		{"GET", "/", "api"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if got := w.Header().Get("Who"); w.Code != http.StatusOK || got != tt.want {
			t.Errorf("%s %s: %d by %q, want %q", tt.method, tt.path, w.Code, got, tt.want)
		}
	}
}
