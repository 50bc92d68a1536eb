# `make` builds; the other targets set up what they need by themselves and say so when they cannot.
PREFIX = /usr/local
SYSCONFDIR = /etc
UNITDIR = $(PREFIX)/lib/systemd/system
DESTDIR =
CARGO = cargo
# `make FEATURES=vendored` needs no OpenSSL on this machine, but perl, and minutes.
FEATURES =
BINARY = target/release/buildbot-irc
# What `make static` builds for; by default this machine.
TARGET = $$(rustc -vV | sed -n 's/^host: //p')
# No path of this machine gets into the program: who builds it again, elsewhere, gets the same bytes.
HOMELESS = --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}/registry/src=/crates \
	--remap-path-prefix=$$PWD/vendor=/crates/index.crates.io-1949cf8c6b5b557f
RELEASE = --release --locked --features "$(FEATURES)"

all:
	RUSTFLAGS="$(HOMELESS)" $(CARGO) build $(RELEASE) || { \
		pkg-config --exists openssl || echo "OpenSSL's headers are missing: install pkg-config and libssl-dev" \
			"(openssl-devel, openssl-dev), or build with them: make FEATURES=vendored"; exit 1; } >&2

target/release/buildbot-irc: Cargo.toml Cargo.lock src/*.rs src/*/*.rs
	$(MAKE) all
	touch $@

# One file that needs no library of this machine or another.
static:
	RUSTFLAGS="$(HOMELESS) -Ctarget-feature=+crt-static" CFLAGS="-ffile-prefix-map=$$PWD/target=/target" \
		$(CARGO) build --release --locked --features vendored --target "$(TARGET)"
	@ls -l target/$(TARGET)/release/buildbot-irc

# A tarball with all crates, which builds without a network.
dist:
	sh tests/dist.sh

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

# Licences, origin and doubles of all crates, and what is known against them.
audit:
	sh tests/audit.sh

test: setup
	$(CARGO) test --locked -- --test-threads=4

# The static program and the tarball, which take their minutes to build.
test-packages: setup all static dist
	$(CARGO) test --locked --test packages -- --ignored --test-threads=2

# Those of the tests that know a master, with older ones.
test-masters:
	for version in 2.10.5 3.11.9; do \
		sh tests/common/setup.sh $$version && \
		BUILDBOT=$$version $(CARGO) test --locked --no-fail-fast --test announcements --test authority \
			--test commands --test master -- --test-threads=4 || exit 1; \
	done

# As long as that for each parser, several at a time: make fuzz SECONDS=600
fuzz:
	FUZZ_SECONDS=$(or $(SECONDS),600) CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
		$(CARGO) test --release --locked --target-dir target/fuzz --bin buildbot-irc fuzz_ -- --nocapture --test-threads=8

# Longer than in `make test`: make chaos MINUTES=30 SEED=7
chaos: setup
	MINUTES=$(or $(MINUTES),30) SEED=$(SEED) $(CARGO) test $(RELEASE) --test resilience chaos_ -- --nocapture

demo: setup all
	RUSTFLAGS="$(HOMELESS)" $(CARGO) run $(RELEASE) --quiet --example demo

# ROWS=commands,memory measures some of the rows only.
bench: setup all
	ROWS='$(ROWS)' RUSTFLAGS="$(HOMELESS)" $(CARGO) run $(RELEASE) --quiet --example bench

setup:
	sh tests/common/setup.sh

install: $(BINARY)
	d="$(DESTDIR)$(PREFIX)" && e="$(DESTDIR)$(SYSCONFDIR)/buildbot-irc" && u="$(DESTDIR)$(UNITDIR)" && \
	install -d "$$d/bin" "$$d/share/man/man1" "$$d/share/man/man5" "$$d/share/doc/buildbot-irc" "$$e" "$$u" && \
	install -m 0755 $(BINARY) "$$d/bin/buildbot-irc" && \
	install -m 0644 doc/buildbot-irc.1 "$$d/share/man/man1/" && \
	install -m 0644 doc/bot.conf.5 "$$d/share/man/man5/" && \
	install -m 0644 *.md LICENSE bot.conf.example doc/*.md "$$d/share/doc/buildbot-irc/" && \
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|; s|/etc/buildbot-irc|$(SYSCONFDIR)/buildbot-irc|g' \
		doc/buildbot-irc.service > "$$u/buildbot-irc.service" && chmod 0644 "$$u/buildbot-irc.service" && \
	{ test -e "$$e/bot.conf" || install -m 0640 bot.conf.example "$$e/bot.conf"; }

# The configuration stays.
uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/buildbot-irc" "$(DESTDIR)$(PREFIX)/share/man/man1/buildbot-irc.1" \
		"$(DESTDIR)$(PREFIX)/share/man/man5/bot.conf.5" "$(DESTDIR)$(UNITDIR)/buildbot-irc.service"
	rm -rf "$(DESTDIR)$(PREFIX)/share/doc/buildbot-irc"

clean:
	$(CARGO) clean

.PHONY: all static dist check audit test test-packages test-masters chaos fuzz demo bench setup install uninstall clean
