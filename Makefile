# make test      all tests, with nothing but Go
# make bench     the table of docs/benchmarks.md, about ten minutes; COUNT=10 for tighter intervals
# make floor     what a forward scan costs at least on this processor's core; needs a C compiler
# make generate  writes the assembly again
# make ci        what a change must pass

SHELL := bash -o pipefail
COUNT ?= 6
BENCH = go test -run '^$$' -benchmem -timeout 60m
FLOOR = internal/kernel/_floor/floor.c

.PHONY: test bench floor generate ci

test:
	go test ./...

# A run of attention at length 16384 takes half a minute, so there is one of each length.
bench:
	$(BENCH) -bench . -skip '^BenchmarkAttention$$' -benchtime 0.1s -count $(COUNT) . | tee bench.txt
	$(BENCH) -bench '^BenchmarkAttention$$' -benchtime 0.1s . | tee -a bench.txt
	go tool -modfile=tools/go.mod benchstat bench.txt

floor:
	@set -e; out=$$(mktemp -d); trap "rm -rf $$out" EXIT; \
	for isa in native haswell; do $(CC) -O3 -march=$$isa -o $$out/floor $(FLOOR); $$out/floor; done

generate:
	go generate ./internal/kernel

ci:
	.ci/run
