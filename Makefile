# `make` builds; the other targets set up what they need by themselves and say so when they cannot.
PREFIX = /usr/local
SYSCONFDIR = /etc
DESTDIR =
CARGO = cargo
BINARY = target/release/buildbot-irc

all:
	$(CARGO) build --release --locked

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

test: setup
	$(CARGO) test --locked -- --test-threads=4

# Those of the tests that know a master, with older ones.
test-masters:
	for version in 2.10.5 3.11.9; do \
		sh tests/common/setup.sh $$version && \
		BUILDBOT=$$version $(CARGO) test --locked --no-fail-fast --test announcements --test authority \
			--test commands --test master -- --test-threads=4 || exit 1; \
	done

demo: setup all
	$(CARGO) run --release --locked --quiet --example demo

setup:
	sh tests/common/setup.sh

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 \
		$(DESTDIR)$(PREFIX)/share/doc/buildbot-irc $(DESTDIR)$(SYSCONFDIR)/buildbot-irc
	install -m 0755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/buildbot-irc
	install -m 0644 doc/buildbot-irc.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -m 0644 README.md CHANGES.md bot.conf.example $(DESTDIR)$(PREFIX)/share/doc/buildbot-irc/
	test -e $(DESTDIR)$(SYSCONFDIR)/buildbot-irc/bot.conf || \
		install -m 0640 bot.conf.example $(DESTDIR)$(SYSCONFDIR)/buildbot-irc/bot.conf

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/buildbot-irc $(DESTDIR)$(PREFIX)/share/man/man1/buildbot-irc.1
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/buildbot-irc

clean:
	$(CARGO) clean

.PHONY: all check test test-masters demo setup install uninstall clean
