#!/bin/sh
# Installs or removes the program: install.sh install|uninstall. The Makefile's variables come by the environment:
# DESTDIR, PREFIX, SYSCONFDIR, UNITDIR and BINARY.
set -eu

bin=$DESTDIR$PREFIX/bin
man=$DESTDIR$PREFIX/share/man
doc=$DESTDIR$PREFIX/share/doc/buildbot-irc
etc=$DESTDIR$SYSCONFDIR/buildbot-irc
unit=$DESTDIR$UNITDIR/buildbot-irc.service

case $1 in
install)
	install -d "$bin" "$man/man1" "$man/man5" "$doc" "$etc" "${unit%/*}"
	install -m 0755 "$BINARY" "$bin/buildbot-irc"
	install -m 0644 doc/buildbot-irc.1 "$man/man1/"
	install -m 0644 doc/bot.conf.5 "$man/man5/"
	install -m 0644 ./*.md LICENSE bot.conf.example doc/coming-from-buildbot.md "$doc/"
	sed "s|/usr/local/bin/|$PREFIX/bin/|; s|/etc/buildbot-irc|$SYSCONFDIR/buildbot-irc|g" \
		doc/buildbot-irc.service > "$unit"
	chmod 0644 "$unit"
	# A configuration that is there stays.
	test -e "$etc/bot.conf" || install -m 0640 bot.conf.example "$etc/bot.conf"
	;;
uninstall)
	# The configuration stays.
	rm -f "$bin/buildbot-irc" "$man/man1/buildbot-irc.1" "$man/man5/bot.conf.5" "$unit"
	rm -rf "$doc"
	;;
*)
	echo "usage: tests/install.sh install|uninstall" >&2
	exit 64
	;;
esac
