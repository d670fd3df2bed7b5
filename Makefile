# imgmaint: `make demo` shows it at work, `make test` runs everything.
GO      ?= go
BIN     := bin/imgmaint
FUZZTIME ?= 10s
export CGO_ENABLED ?= 0

# What the tests measure us against; installed by `make test` when it runs as root.
DEBS := qemu-utils e2fsprogs gdisk fdisk parted dosfstools mtools libxml2-utils \
        gnupg gpgv openssl mmdebstrap debian-archive-keyring xz-utils zstd acl attr libcap2-bin \
        cpio jq tar coreutils util-linux time strace

.PHONY: all build demo test big unit race tools fuzz bench lint vet vuln clean

all: build

build:
	$(GO) build -trimpath -ldflags='-s -w' -o $(BIN) ./cmd/imgmaint

demo: build
	@./testdata/demo.sh $(BIN)

# Installs the reference tools if that can be done, then requires them.
test: tools
	IMGMAINT_REQUIRE_TOOLS=1 $(GO) test -timeout 20m ./...

# The ext4 reader on trees of 20,000 entries, for every feature set and block size: half an hour.
big: tools
	IMGMAINT_BIG_TESTS=1 IMGMAINT_REQUIRE_TOOLS=1 $(GO) test -timeout 90m ./formats/filesys/ext4

unit:
	$(GO) test ./...

tools:
	@./testdata/tools.sh $(DEBS)

race: tools
	CGO_ENABLED=1 IMGMAINT_REQUIRE_TOOLS=1 $(GO) test -race -short -timeout 20m ./...

fuzz:
	@./testdata/fuzz.sh $(FUZZTIME)

bench: build
	@./testdata/bench.sh $(BIN)

lint: vet
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

vet:
	$(GO) vet ./...

vuln:
	$(GO) run golang.org/x/vuln/cmd/govulncheck@latest ./...

clean:
	rm -rf bin
