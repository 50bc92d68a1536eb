# `make` builds; the other targets set up what they need by themselves and say so when they cannot.

# Where `make install` puts things, all of it below DESTDIR.
PREFIX = /usr/local
SYSCONFDIR = /etc
UNITDIR = $(PREFIX)/lib/systemd/system
DESTDIR =
CARGO = cargo
# `make FEATURES=vendored` needs no OpenSSL on this machine, but perl, and minutes.
FEATURES =
# What `make install` installs.
BINARY = target/release/buildbot-irc
# What `make static` builds for; by default this machine.
TARGET = $$(rustc -vV | sed -n 's/^host: //p')
# No path of this machine gets into the program: who builds it again, elsewhere, gets the same bytes.
REPRODUCIBLE = --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}/registry/src=/crates \
	--remap-path-prefix=$$PWD/vendor=/crates/index.crates.io-1949cf8c6b5b557f
RELEASE = --release --locked --features "$(FEATURES)"
INSTALL = DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" SYSCONFDIR="$(SYSCONFDIR)" UNITDIR="$(UNITDIR)" \
	BINARY="$(BINARY)" sh tests/install.sh

# Builds target/release/buildbot-irc.
all:
	RUSTFLAGS="$(REPRODUCIBLE)" $(CARGO) build $(RELEASE) || sh tests/openssl.sh

# The same, only if a source is newer: what `make install` needs.
target/release/buildbot-irc: Cargo.toml Cargo.lock bot.conf.example src/*.rs src/*/*.rs src/*/*/*.rs src/*/*.txt
	$(MAKE) all
	touch $@

# Builds one file that needs no library of this machine or another.
static:
	RUSTFLAGS="$(REPRODUCIBLE) -Ctarget-feature=+crt-static" CFLAGS="-ffile-prefix-map=$$PWD/target=/target" \
		$(CARGO) build --release --locked --features vendored --target "$(TARGET)"
	@ls -l target/$(TARGET)/release/buildbot-irc

# Makes a tarball with all crates, which builds without a network.
dist:
	sh tests/dist.sh

# Makes target/buildbot-irc_VERSION_ARCH.deb; BINARY=target/HOST/release/buildbot-irc makes it from the static program.
deb: $(BINARY)
	BINARY="$(BINARY)" CARGO="$(CARGO)" sh tests/deb.sh

# Checks the format, the lints, and which room imports which.
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	sh tests/floors.sh

# Checks licences, origin and doubles of all crates, and asks for known vulnerabilities.
audit:
	sh tests/audit.sh

# Runs all tests; sets up what they need.
test: setup
	$(CARGO) test --locked --no-fail-fast -- --test-threads=4

# Tests the static program, the tarball and the .deb, which take minutes to build.
test-packages: setup all static dist deb
	$(CARGO) test --locked --test packages --test deb -- --ignored --test-threads=2

# Runs the tests that need a master with older releases of Buildbot.
test-masters:
	CARGO="$(CARGO)" sh tests/masters.sh

# Fuzzes each parser for so long, several at a time: make fuzz SECONDS=600
fuzz:
	FUZZ_SECONDS=$(or $(SECONDS),600) CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
		$(CARGO) test --release --locked --target-dir target/fuzz --bin buildbot-irc fuzz_ -- --nocapture --test-threads=8

# Cuts links, restarts and kills for longer than `make test` does: make chaos MINUTES=30 SEED=7
chaos: setup
	MINUTES=$(or $(MINUTES),30) SEED=$(SEED) $(CARGO) test $(RELEASE) --test resilience chaos_ -- --nocapture

# Plays a demo with a real master and a real IRC server, and lets you join.
demo: setup all
	RUSTFLAGS="$(REPRODUCIBLE)" $(CARGO) run $(RELEASE) --quiet --example demo

# Measures speed and cost beside Buildbot's own reporter; ROWS=commands,memory measures some of the rows only.
bench: setup all
	ROWS='$(ROWS)' RUSTFLAGS="$(REPRODUCIBLE)" $(CARGO) run $(RELEASE) --quiet --example bench

# Draws doc/demo.svg from a run of the demo, and doc/bench.svg from what `make bench` has measured last.
pictures:
	$(MAKE) demo < /dev/null > target/demo.log
	python3 tests/pictures.py

# Installs the servers and the Python environment that the tests need.
setup:
	sh tests/common/setup.sh

# Installs the program, its manual and its unit; a configuration that is there stays.
install: $(BINARY)
	$(INSTALL) install

# Removes what `make install` has installed; the configuration stays.
uninstall:
	$(INSTALL) uninstall

# Removes all that was built.
clean:
	$(CARGO) clean

.PHONY: all static dist deb pictures check audit test test-packages test-masters chaos fuzz demo bench setup install uninstall clean
