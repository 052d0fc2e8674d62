# The house's doors. `make` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PART ?= 1/1
FUZZTIME ?= 60s
PAIRS ?= 1000000
BENCH ?= .
BENCHTIME ?= 1s
ARGS ?=
TESTFLAGS ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
IMAGE ?= kt-gateway:$(VERSION)
BUILDER ?= golang:1.26
ENGINE_FLAGS ?=
# -race also checks each unsafe.Pointer. SQLite is C turned into Go, to which those rules
# are foreign: there they find nothing and double the time. Races are looked for in all.
CHECKPTR := modernc.org/...=-d=checkptr=0
VULNDB ?= $(abspath $(CURDIR)/../shared/vulndb)

.PHONY: help needs deps test race allocs fuzz oracle bench bench-peers torture-budgets wire fleet lint vuln build image docs clean

help: ## this list
	grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	cat <<'END'

	The habits of the house
	· The contract (names, formats, behaviours) stays; what is inside may change freely.
	· A fix starts with the test that fails. No t.Skip, no sleep where a fake clock works.
	· Prove a gate once: break the code, see it caught, say so in the commit.
	· Small commits, one idea each: `pkg: what is different now`, then why and how it was checked.
	· Speed is a benchmark, never a timed test. A number in prose has its command beside it.
	· A new outside library: one owner package, a row in the import test and in docs/dependencies.md.
	· What a user notices is a line in CHANGELOG.md; what closes a door is half a page in docs/decisions/.
	END

# What is missing: one word each, nothing when all is there.
missing = $$( \
  command -v python3 >/dev/null || echo python3; \
  command -v git >/dev/null || echo git; \
  command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || echo postgresql; \
  nginx=$$(PATH="$$PATH:/usr/sbin"; command -v nginx) && { "$$nginx" -V 2>&1 | grep -q -e '--with-stream ' || ls /usr/lib/nginx/modules/ngx_stream_module.so >/dev/null 2>&1; } || echo nginx-with-stream; \
  cc=$$(go env CC 2>/dev/null || echo gcc); \
  echo '\#include <stdlib.h>' | $${cc:-gcc} -x c -fsyntax-only - 2>/dev/null || echo c-compiler )

needs:
	command -v go >/dev/null || { echo "make: Go 1.26 or later is needed and is not in PATH"; exit 1; }
	have=$$(go env GOVERSION); have=$${have#go}
	printf '1.26\n%s\n' "$${have%%[- ]*}" | sort -VC || { echo "make: Go 1.26 or later is needed, this is $$have"; exit 1; }
	missing="$(missing)"
	[ -z "$$missing" ] || $(MAKE) deps
	missing="$(missing)"
	[ -z "$$missing" ] || { echo "make: still missing:" $$missing; exit 1; }

deps: ## gets what the tests need beside Go: a C compiler (for -race), Python 3, git, PostgreSQL's server, nginx with its stream module; on Debian, as root
	if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then
	  echo "make: a C compiler with libc headers, Python 3, git, PostgreSQL's server and nginx with its stream module are needed: install them, or run 'make deps' as root on Debian"
	  exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev python3 git ca-certificates postgresql nginx-light libnginx-mod-stream >/dev/null

test: needs ## all tests under the race detector, the allocation gates without it, budgets, the wire and a small fleet mistreated for a minute each, 5 s of each fuzz target
	$(MAKE) race
	$(MAKE) allocs
	go run ./test/torture -short
	go run ./test/wire -short
	go run ./test/fleet -short
	./test/fuzz.sh 1/1 5s
	echo "test: all of it passed"

race: ## the tests alone, under the race detector: make race TESTFLAGS='-run TestScripts'
	mkdir -p .make
	CGO_ENABLED=1 go test -race -gcflags='$(CHECKPTR)' -timeout 20m $(TESTFLAGS) ./... 2>&1 | tee .make/race.out
	want=$$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | grep -c .)
	got=$$(grep -cE '^ok[[:space:]]' .make/race.out) || true
	[ "$$want" -ge 10 ] && [ "$$got" -eq "$$want" ] || { echo "make: $$got packages passed, $$want have tests (at least 10 are expected)"; exit 1; }
	if grep -q 'no tests to run' .make/race.out && [ -z "$(TESTFLAGS)" ]; then echo "make: a package ran no test"; exit 1; fi

allocs: ## the allocation gates, without the race detector
	./test/allocs.sh

fuzz: ## every fuzz target: make fuzz [PART=i/n] [FUZZTIME=60s]; PART=1/3 keeps a part under 8 minutes
	./test/fuzz.sh "$(PART)" "$(FUZZTIME)"

oracle: ## abac.Decide against Cedar and the spec, on 1,000,000 random pairs: make oracle [PAIRS=n]
	mkdir -p .make
	go test ./abac -count=1 -timeout 60m -run '^TestOracle$$' -v -oracle.pairs=$(PAIRS) | tee .make/oracle.out
	grep -q '^--- PASS: TestOracle' .make/oracle.out

bench: ## the benchmarks, with allocations: make bench [BENCH=Decide] [BENCHTIME=1s]
	mkdir -p .make
	go test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem ./... | tee .make/bench.out
	grep -q '^Benchmark.*ns/op' .make/bench.out || { echo "make: no benchmark ran"; exit 1; }

bench-peers: ## CPU a request and a chunk beside nginx and a bare proxy: make bench-peers [ARGS='-seconds 2 -rounds 3']
	command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || echo "bench-peers: without nginx (Debian: nginx-light) its rows are left out"
	go run ./test/benchpeers $(ARGS)

torture-budgets: ## budgets under real gateways, over SQLite and over PostgreSQL, mistreated: make torture-budgets [PART=i/n] [ARGS='-only endings -database postgres']; PART=1/4 keeps a part under 8 minutes
	go run ./test/torture -part "$(PART)" $(ARGS)

wire: ## a gateway between a client and a provider that misbehave, byte by byte: make wire [PART=i/n] [ARGS='-only framing']; PART=1/3 keeps a part under 8 minutes
	command -v slowhttptest >/dev/null || echo "wire: without slowhttptest (Debian: slowhttptest) one scenario fails"
	go run ./test/wire -part "$(PART)" $(ARGS)

fleet: ## a fleet of gateways on PostgreSQL, its revocations and outages: make fleet [PART=i/n] [ARGS='-only revoke -gateways 20']; PART=1/3 keeps a part under 8 minutes
	go run ./test/fleet -part "$(PART)" $(ARGS)

lint: ## gofmt, vet, staticcheck, and what the house refuses (skipped tests, unfinished marks)
	bad=$$(git ls-files -z '*.go' | xargs -0 -r ls 2>/dev/null | xargs gofmt -l)
	[ -z "$$bad" ] || { echo "lint: gofmt these:"; echo "$$bad"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go mod verify >/dev/null
	for f in .ci/run test/*.sh; do bash -n "$$f"; done
	if grep -rnE --include='*.go' '\b[tbf]\.Skip(Now|f)?\(|\b(TODO|FIXME|XXX)\b' .; then echo "lint: the house has no skipped tests and no unfinished marks"; exit 1; fi
	git ls-files '*.go' | xargs -r wc -l 2>/dev/null | awk '$$2 != "total" && $$1 > 600 { print "lint: warning: " $$2 " has " $$1 " lines" }'
	echo "lint: clean"

vuln: ## known vulnerabilities that the code reaches, by govulncheck
	if [ -d "$(VULNDB)" ]; then go tool govulncheck -db "file://$(VULNDB)" ./...; else go tool govulncheck ./...; fi

build: ## ./kt-gateway, static
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o kt-gateway ./cmd/kt-gateway
	./kt-gateway version

image: ## the image, with docker or buildah: make image [IMAGE=name:tag] [BUILDER=golang:1.26] [ENGINE_FLAGS=…]
	set -- -t "$(IMAGE)" --build-arg "VERSION=$(VERSION)" --build-arg "BUILDER=$(BUILDER)"
	if docker info >/dev/null 2>&1; then docker build $(ENGINE_FLAGS) "$$@" .
	elif command -v buildah >/dev/null; then buildah --storage-driver vfs build --isolation chroot --format docker $(ENGINE_FLAGS) "$$@" .
	else echo "make: neither a docker daemon nor buildah is here"; exit 1; fi

docs: ## docs/errors.md from the table of refusals
	go test ./proxy -count=1 -run Errors -update
	git --no-pager diff --stat -- docs

clean: ## what was built; Go's own caches stay
	rm -rf .make kt-gateway
