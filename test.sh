#!/usr/bin/env bash
# The one command that passes every test, on a bare Debian machine with Go and a C compiler. It installs nodejs, npm
# and postgresql from Debian and the npm packages that package-lock.json pins, and stops at the first step that fails.
#
#   ./test.sh         everything
#   ./test.sh quick   without the race detector and the quickstart, while developing
#   ./test.sh long    everything, then two million steps of the model (STEPS), 100,000 vouchers to payee and contract, 500
#                     kills of each program (KILLS), five minutes of faults in each kind of fleet (NEMESIS, in seconds, SEED),
#                     every way in which an endpoint can misbehave, 10,000 connections (CONNECTIONS), each fuzz target for a
#                     minute (FUZZTIME), llama.cpp behind sidecars and the local proxy, and
#                     govulncheck (GOVULNDB names another database)
#   ./test.sh mutate  undoes each mend of a fault in turn (internal/mutants), and asks whether its test finds that
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
modules=(. internal/model internal/authority internal/clients bench) # ./... leaves out the modules within the SDK's
. ./cgo.env
exec </dev/null
export GOFLAGS="${GOFLAGS:-} -buildvcs=false" # a checkout of another user has no version to stamp
mode=${1:-all}
passed=0 failed=0
# What tests write goes to memory where a machine has 8 GB for that, and what Go builds to the disk: the tests synchronize many
# thousand times, and on a slow disk a right program is late.
export GOTMPDIR=${GOTMPDIR:-${TMPDIR:-/tmp}}
if [[ -w /dev/shm && $(df --output=avail /dev/shm | tail -1) -gt 8000000 && $(findmnt -no OPTIONS /dev/shm) != *noexec* ]]; then
	export TMPDIR=/dev/shm
fi
work=$(mktemp -d)
log=$work/log
queues=() # process groups, see background
trap 'for each in ${queues[@]+"${queues[@]}"} $(jobs -p); do kill -- "$each" 2>/dev/null || true; done; rm -rf "$work"' EXIT

# finish prints the count that CI reads. A step that is not a test counts as one failure when it fails.
finish() {
	echo "$passed passed, $failed failed"
	exit "$((failed > 0))"
}

fail() {
	echo "FAIL $1"
	failed=$((failed > 0 ? failed : 1))
	finish
}

# step runs a function with its output in a log: shown in full if it fails, one line if it passes. A function may put a
# summary into $work/summary.
step() {
	local name=$1 begun=$SECONDS status
	shift
	: >"$work/summary"
	set +e # and not "|| status=$?", under which bash would ignore failures inside the function
	(set -e; "$@") >"$log" 2>&1
	status=$?
	set -e
	count
	if ((status != 0)); then
		cat "$log"
		fail "$name ($((SECONDS - begun)) s)"
	fi
	printf 'ok   %-22s %4d s  %s\n' "$name" "$((SECONDS - begun))" "$(<"$work/summary")"
	if [[ -s $work/again ]]; then
		sed -e 's/^/     /' -e 's/FAIL/failed/' "$work/again"
		rm "$work/again"
	fi
}

# count adds what a step's tests left in $work/counts.
count() {
	[[ -f $work/counts ]] || return 0
	local p f
	read -r p f <"$work/counts" || p=0 f=0
	rm "$work/counts"
	passed=$((passed + p)) failed=$((failed + f))
}

say() { echo "$*" >"$work/summary"; }

# background runs functions one after the other, at a niceness, beside the steps that follow: what the tests leave idle of two cores is a
# quarter, and enough for what only computes. A step that is joined to a function waits for its end.
background() {
	set -m # a group of its own, which can be killed whole
	queue "$@" &
	set +m
	queues+=("-$!")
}

queue() {
	local each begun
	set +e
	(($1 == 0)) || renice -n "$1" "$BASHPID" >/dev/null
	for each in "${@:2}"; do
		begun=$SECONDS
		mkdir "$work/$each"
		(work=$work/$each; log=$work/log; set -e; "$each") >"$work/$each/log" 2>&1
		echo "$? $((SECONDS - begun))" >"$work/$each/ended"
	done
}

joined() {
	local status took each
	until [[ -s $work/$1/ended ]]; do sleep 0.1; done
	read -r status took <"$work/$1/ended"
	cat "$work/$1/log"
	for each in counts again; do
		[[ ! -f $work/$1/$each ]] || mv "$work/$1/$each" "$work"
	done
	say "$(cat "$work/$1/summary" 2>/dev/null || true) ($took s beside others)"
	return "$status"
}

# tools finds or installs what the tests need.
tools() {
	command -v go >/dev/null || { echo "test.sh: Go is not installed or not in PATH; go.mod says which version"; return 1; }
	command -v gcc >/dev/null || { echo "test.sh: there is no C compiler: apt-get install gcc libc6-dev"; return 1; }
	if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
		debian nodejs npm
	fi
	if [[ ${GPUPAY_NO_POSTGRES:-} != 1 ]] && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
		debian postgresql # the tests start their own server, see internal/pgtest
	fi
	local major
	major=$(node -p 'process.versions.node.split(".")[0]')
	((major >= 18)) || { echo "test.sh: node is $(node --version); the tests need 18 or newer"; return 1; }
	say "$(go env GOVERSION), node $(node --version)"
}

debian() {
	local sudo=()
	command -v apt-get >/dev/null || { echo "test.sh: install $* first: this is no Debian"; return 1; }
	if ((EUID != 0)); then
		sudo -n true 2>/dev/null || { echo "test.sh: not root: run first: sudo apt-get install $*"; return 1; }
		sudo=(sudo -n)
	fi
	"${sudo[@]}" apt-get update -q
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

# packages runs npm ci where node_modules is not what package-lock.json says.
packages() {
	local stamp=node_modules/.gpupay-stamp now
	if grep -q '"resolved"' package-lock.json; then
		echo "package-lock.json says where packages were loaded from: remove its resolved lines (see .npmrc)"
		return 1
	fi
	now=$(cat package.json package-lock.json .npmrc | sha256sum)
	if [[ -f $stamp && $(<"$stamp") == "$now" ]]; then
		say "unchanged"
		return
	fi
	npm ci --ignore-scripts --no-progress
	echo "$now" >"$stamp"
}

formatted() {
	local module dirs files
	dirs=$(for module in "${modules[@]}"; do go list -C "$module" -f '{{.Dir}}' ./...; done)
	files=$(gofmt -l $dirs | sort -u)
	[[ -z $files ]] || { echo "run gofmt -w on:"; echo "$files"; return 1; }
	forge fmt --check
}

# lint is go vet and staticcheck.
lint() {
	local module
	go build -o "$work/lint" ./internal/lint
	for module in "${modules[@]}"; do (cd "$module" && "$work/lint" ./...); done
}

# portable holds the promise that what is no database builds without cgo, and that NVML then says what is missing.
portable() {
	CGO_ENABLED=0 go build ./bindings/... ./channel ./metering/... ./sdk/wire
	CGO_ENABLED=0 go vet ./metering/...
	CGO_ENABLED=0 gotest ./metering/nvml
}

# allocations are counted, which the race detector hides.
allocations() { go test -count=1 ./channel; }

# forge is the native program: npm's wrapper of it exits 0 also when it failed.
forge() { node_modules/@foundry-rs/forge-*/bin/forge "$@"; }

contracts() { forge build; }

# forgetest also holds the gas figures to contracts/snapshots: see gas_snapshot_check in foundry.toml.
forgetest() {
	local status=0 before=$work/snapshots
	cp -r contracts/snapshots "$before"
	forge test || status=$?
	sed -n 's/.*: \([0-9]*\) tests passed, \([0-9]*\) failed.*/\1 \2/p' "$log" | tail -1 >"$work/counts"
	[[ -s $work/counts ]] || { echo "forge ran no tests, or stopped at the gas figures above"; return 1; }
	say "$(grep -o '[0-9]* tests passed.*' "$log" | tail -1)"
	diff -r "$before" contracts/snapshots || { echo "gas changed: commit contracts/snapshots with the reason"; return 1; }
	return "$status"
}

# forktest puts the escrow onto a chain of its own with the deploy program, as anybody would, and has forge test what is
# there. The key is the first of those that anvil gives coins to, and no secret.
forktest() {
	local chain=84532 rpc= anvil out status=0
	: >"$work/anvil"
	node_modules/@foundry-rs/anvil-*/bin/anvil --port 0 --chain-id "$chain" >"$work/anvil" 2>&1 &
	anvil=$!
	for _ in {1..100}; do
		rpc=$(sed -n 's/^Listening on /http:\/\//p' "$work/anvil")
		[[ -z $rpc ]] || break
		sleep 0.1
	done
	out=$(GPUPAY_KEY=0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80 \
		go run ./cmd/gpupay deploy --rpc "$rpc" --salt forktest) || status=1
	FORK_ESCROW=${out#*GPUPAY_ESCROW=} FORK_CHAIN=$chain forge test --match-contract ForkTest --fork-url "$rpc" || status=1
	kill "$anvil"
	sed -n 's/.*: \([0-9]*\) tests passed, \([0-9]*\) failed, 0 skipped.*/\1 \2/p' "$log" | tail -1 >"$work/counts"
	[[ -s $work/counts ]] || { echo "forge ran no tests against the deployed escrow"; return 1; }
	say "$(grep -o '[0-9]* tests passed.*' "$log" | tail -1)"
	return "$status"
}

# generated compares with a copy, not with a commit, so that a tree that is being worked on can be tested.
generated() {
	cp -r bindings "$work/bindings"
	go generate ./bindings/...
	diff -r "$work/bindings" bindings >"$work/diff" && return
	cp -r "$work/bindings/." bindings
	cut -c1-200 "$work/diff" | head -50
	echo "bindings are stale: run go generate ./bindings/... (or remove out and cache, if they are older than foundry.toml)"
	return 1
}

# gotest runs go test, counts its tests, and leaves in the log only what failed. Vet is a step of its own, and nobody debugs
# these programs: without the tables for that they are linked sooner.
gotest() {
	local status=0 json=$work/json p f s
	go test -count=1 -json -vet=off -ldflags=-w "$@" >"$json" || status=$?
	p=$(grep -c '"Action":"pass".*"Test":' "$json") || true
	f=$(grep -c '"Action":"fail".*"Test":' "$json") || true
	s=$(grep -c '"Action":"skip".*"Test":' "$json") || true
	echo "$p $f" >"$work/counts"
	say "$p passed, $f failed, $s skipped"
	((status == 0)) || failures "$json"
	return "$status"
}

# suite runs the tests of packages, the longest first, and those that failed beside the others once more by themselves. Most wait for
# blocks and clocks: two packages, and four tests of each, keep two cores busy, and more would come late.
suite() {
	local packages=$1
	shift
	gotest "$@" -p 2 -parallel 4 -timeout 35m $packages || again "$@"
}

# What the race detector would see little of and slow much: packages that start programs, which are built without it, packages in which
# nothing happens at the same time, tables whose cases come one after the other, and one of 500 clients that are not patient.
apart='/(internal/(crash|e2e|fleet|interop|nemesis|programs|readme|routesim)|metering/verify|sdk/internal/billed|sdk/route/sim'
apart+='|bindings|internal|internal/(accept|eip712|exactjson|mutate|redact|u256)|metering/(merkle|trace|usage)|sdk'
apart+='|sdk/(audit|chain/localchain|node/nodekeys|units|wire|x402)|sdk/internal/(database|evidence|outcome|refusal|rows|ticks))$'
tables='^(TestBudgetIsNeverPassed|TestCrashAnywhere|TestEndpointMisbehaves|TestEveryFieldOfWhatAProviderSends|TestRenterOfTwoEndpoints|TestTamperedBundle)$'

# What only computes, on values of its own, and is nobody's here: to search it for races costs half of the processor's time. It is compiled
# without inlining, so that sync's functions, which tell the detector who waits for whom, stay those of package sync.
geth=github.com/ethereum/go-ethereum
# Nor is it asked whether unsafe pointers of others are aligned, and GCs are half as many: memory there is.
unsearched=(-gcflags=all=-d=checkptr=0)
for each in compress/... encoding/... hash/... strconv unicode/... golang.org/x/crypto/... \
	$geth/{common,core/tracing,core/types,core/vm,crypto,params,rlp,trie}/...; do
	unsearched+=("-gcflags=$each=-race=false -l")
done

# racing runs all other tests.
racing() {
	local longest="./sdk/provider ./sdk/renter ./sdk/settle ./sdk/sidecar ./sdk/x402/x402client"
	GOGC=200 suite "$longest $(go list ./... | grep -vE "$apart")" -race "${unsearched[@]}" -skip "$tables"
}

# tabled runs the tables, whose cases wait one after the other.
tabled() { suite "./sdk/renter ./sdk/provider ./sdk/proxy" -run "$tables"; }

# again runs up to three tests that failed, one after the other, with the machine to themselves: a test of real programs and
# real clocks can starve on two cores, and a fault is there alone too. What they printed is shown either way. A data race, a
# panic, and a package that fails outside its tests have no second run.
again() {
	local json=$work/json first=$work/first package name p f count=0
	grep -qE 'WARNING: DATA RACE|"Output":"panic: |"Action":"build-fail"' "$json" && return 1
	awk '
		function field(name) { return match($0, "\"" name "\":\"[^\"]*\"") ? substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 5) : "" }
		!/^\{[^{]*"Action":"fail"/ { next }
		field("Test") == "" { whole[field("Package")] = 1; next }
		field("Test") !~ "/" { print field("Package"), field("Test"); test[field("Package")] = 1 }
		END { for (p in whole) if (!(p in test)) print p, "itself" }' "$json" >"$first"
	if ! [[ -s $first ]] || (($(wc -l <"$first") > 3)) || grep -q ' itself$' "$first"; then
		return 1
	fi
	cp "$log" "$work/kept"
	read -r p f <"$work/counts"
	while read -r package name; do
		gotest "$@" -timeout 20m -run "^$name\$" "$package" || { echo "$p $f" >"$work/counts"; return 1; }
		count=$((count + $(cut -d' ' -f1 "$work/counts")))
	done <"$first"
	echo "$((p + count)) 0" >"$work/counts"
	say "$((p + count)) passed, $(wc -l <"$first") tests of them alone, after they had failed beside the others"
	mv "$work/kept" "$work/again"
}

# failures prints the output of failed tests, of failed packages outside their tests, and of failed builds.
failures() {
	awk '
		function field(name,    at) {
			at = match($0, "\"" name "\":\"[^\"]*\"")
			return at ? substr($0, RSTART, RLENGTH) : ""
		}
		{ id = field("Package") field("Test") }
		NR == FNR { if (/^\{[^{]*"Action":"fail"/) bad[id] = 1; next }
		/"Action":"build-output"/ || (/"Action":"output"/ && id in bad) {
			if (match($0, /"Output":".*"}$/)) print substr($0, RSTART + 10, RLENGTH - 12)
		}' "$1" "$1" |
		sed -e 's/\\n$//' -e 's/\\t/\t/g' -e 's/\\u003c/</g' -e 's/\\u003e/>/g' -e 's/\\u0026/\&/g' -e 's/\\\(["\\]\)/\1/g'
}

# model lets everybody do anything for STEPS random steps, or as many as its tests take for enough, and counts the money.
model() {
	cd internal/model
	local status=0
	GPUPAY_MODEL_STEPS=${STEPS:-} gotest -timeout 10h ./... || status=$?
	say "$(cat "$work/summary"), $(grep -o '[0-9]* steps, map' "$work/json" | head -1 | sed 's/, map//')"
	return "$status"
}

# certificates gets and renews them from a public authority's own program.
certificates() {
	cd internal/authority
	gotest ./...
}

# clients has those that OpenAI, Vercel and ollama publish use what is rented.
clients() {
	cd internal/clients
	suite ./...
}

# benchmarks asks whether what measures finds who drops payments, and whether each benchmark works.
benchmarks() {
	cd bench
	gotest "$@" -timeout 20m ./...
}

# longmodel makes the model's steps in as many processes as there are cores.
longmodel() {
	local cores pids=() pid status=0
	cores=$(nproc)
	go test -C internal/model -c -o "$work/model" .
	for ((i = 0; i < cores; i++)); do
		GPUPAY_MODEL_STEPS=$((${STEPS:-2000000} / cores + 1)) "$work/model" -test.run '^TestBooks$' -test.v -test.timeout 0 \
			>"$work/model.$i" 2>&1 &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do wait "$pid" || status=1; done
	((status == 0)) || grep -hv 'OK, passed' "$work"/model.[0-9]*
	say "$(sed -n 's/.*: \([0-9]*\) steps, map.*/\1/p' "$work"/model.[0-9]* | awk '{ n += $1 } END { print n }') steps in $cores processes"
	return "$status"
}

quickstart() {
	./quickstart.sh
	say "its ledger adds up"
}

# fuzz runs every fuzz target there is, one after the other.
fuzz() {
	local targets=$work/targets package name count=0
	go test -list '^Fuzz' ./... | awk '/^Fuzz/ { names[n++] = $1 } /^ok/ { for (i = 0; i < n; i++) print $2, names[i]; n = 0 }' >"$targets"
	[[ -s $targets ]] || { echo "there is no fuzz target"; return 1; }
	while read -r package name; do
		echo "$package $name"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-1m}" -fuzzminimizetime 10s -timeout 20m "$package" \
			>"$work/fuzz" 2>&1 </dev/null || timeup "$work/fuzz" || { cat "$work/fuzz"; return 1; }
		count=$((count + 1))
	done <"$targets"
	say "$count targets, ${FUZZTIME:-1m} each"
}

# timeup: go test now and then takes the end of a fuzz target's time for a failure, the only one then.
timeup() { [[ $(sed -n '/^--- FAIL/{n;p;q}' "$1") == "    context deadline exceeded" ]]; }

vouchers() {
	go test -count=1 -timeout 20m -v -run TestWhatThePayeeAcceptsTheContractPays ./internal/accept -cases 100000 -seed "$RANDOM"
	say "$(sed -n 's/.*accept_test.go:[0-9]*: *\([0-9]* accepted\)$/\1/p' "$log") of 100000, all payable"
}

kills() {
	go run ./internal/crash --kills "${KILLS:-500}"
	say "${KILLS:-500} of the provider and as many of renters"
}

# engines has a real inference server be rented out, which npm has for this alone.
engines() {
	cd internal/clients
	(cd llama && npm ci --userconfig "$root/.npmrc" --omit=optional --ignore-scripts --no-progress)
	GPUPAY_LLAMA=1 gotest -run '^TestLlama$' .
}

# connections has ten thousand that send nothing whole be open beside a renter that pays.
connections() {
	GPUPAY_CONNECTIONS=${CONNECTIONS:-10000} gotest -timeout 10m -run '^TestManyConnections$' ./sdk/sidecar
}

# endpoints has every field of an endpoint's answers misbehave in every way, on either side, at every moment, also one of two.
endpoints() {
	GPUPAY_LONG_ENDPOINTS=1 gotest -timeout 60m -run '^(TestEndpointMisbehaves|TestRenterOfTwoEndpoints)$' ./sdk/renter
}

# torment does to whole fleets what a nemesis would, by a seed of its own.
torment() {
	local seed=${SEED:-$RANDOM}
	GPUPAY_NEMESIS_SECONDS=${NEMESIS:-300} GPUPAY_NEMESIS_SEED=$seed gotest -timeout 60m ./internal/nemesis
	say "seed $seed, $(grep -o '[0-9]* faults in [0-9ms]*' "$work/json" | paste -sd, | sed 's/,/, /g')"
}

# vulnerabilities says so where the database cannot be reached: that is no finding, and no clean bill either.
vulnerabilities() {
	local status=0
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ${GOVULNDB:+-db "$GOVULNDB"} ./... >"$work/vuln" 2>&1 || status=$?
	if ((status != 0)) && grep -q '^govulncheck: fetching vulnerabilities: ' "$work/vuln"; then
		say "NOT CHECKED: the database of vulnerabilities cannot be reached"
		return
	fi
	cat "$work/vuln"
	say "$(tail -1 "$work/vuln")"
	return "$status"
}

# mutants leaves its lines in the log, and how many were killed in the summary.
mutants() {
	local status=0 counted
	go run ./internal/mutate ${ONLY:+-only "$ONLY"} || status=$?
	counted=$(tail -1 "$log" | grep -E '^[0-9]+ killed') || counted="it came to no end"
	say "$counted"
	sed -nE 's/^([0-9]+) killed, ([0-9]+) survived, ([0-9]+) errors$/\1 \2 \3/p' <<<"$counted" |
		awk '{ print $1, $2 + $3 }' >"$work/counts"
	return "$status"
}

# sample changes code at random in the packages where money is decided: 95 of 100 changes must be found.
sample() {
	go run ./internal/mutate/sample
	say "$(tail -1 "$log")"
}

[[ $mode == all || $mode == quick || $mode == long || $mode == mutate ]] ||
	fail "unknown mode $mode: say nothing, quick, long or mutate"
if ! command -v go >/dev/null && [[ -x /usr/local/go/bin/go ]]; then
	PATH=$PATH:/usr/local/go/bin
fi
step "tools" tools
step "npm packages" packages
background 0 contracts # on one core
if [[ $mode == mutate ]]; then
	step "forge build" joined contracts
	step "mutants" mutants
	step "random mutants" sample
	finish
fi
step "formatting" formatted
background 19 lint
step "without cgo" portable
step "allocations" allocations
step "forge build" joined contracts
step "forge test, gas" forgetest
step "bindings are current" generated
step "forge test, deployed" forktest
if [[ $mode == quick ]]; then
	background 5 model certificates clients
	step "go test" suite "./sdk/provider ./sdk/renter ./..."
	step "benchmarks" benchmarks
else
	step "go test -race" racing
	background 5 model certificates clients
	background 0 tabled
	step "go test, apart" suite "$(go list ./... | grep -E "$apart")"
	step "benchmarks" benchmarks -race "${unsearched[@]}"
	step "quickstart" quickstart
fi
[[ $mode == quick ]] || step "go test, tables" joined tabled
step "vet and staticcheck" joined lint
step "model" joined model
step "certificates" joined certificates
step "published clients" joined clients
if [[ $mode == long ]]; then
	step "model, long" longmodel
	step "vouchers to both" vouchers
	step "kills" kills
	step "nemesis" torment
	step "endpoints" endpoints
	step "connections" connections
	step "llama.cpp" engines
	step "fuzzing" fuzz
	step "govulncheck" vulnerabilities
fi
finish
