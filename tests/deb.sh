#!/bin/sh
# Makes target/buildbot-irc_VERSION_ARCH.deb from $BINARY and doc/debian. The same program and commit
# give the same bytes. DEBFULLNAME and DEBEMAIL name who answers for the package.
set -eu
umask 022

fail() {
	echo "make deb: $1" >&2
	exit 1
}

for tool in dpkg-deb dpkg-shlibdeps; do
	command -v $tool >/dev/null || fail "$tool is missing: apt-get install dpkg-dev"
done
binary=$(realpath "${BINARY:-target/release/buildbot-irc}")
[ -x "$binary" ] || fail "$binary is not there; \`make\` builds it"
output=${OUTPUT:-target}

upstream=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
version=$upstream-1
arch=${DEB_HOST_ARCH:-$(dpkg --print-architecture)}
[ -n "${DEBEMAIL:-}" ] || echo "make deb: DEBEMAIL is not set: nobody will know whom to write to" >&2
maintainer="${DEBFULLNAME:-The buildbot-irc authors} <${DEBEMAIL:-authors@buildbot-irc.invalid}>"
# Outside a checkout: `make dist` gives all files the commit's time.
[ -n "${SOURCE_DATE_EPOCH:-}" ] ||
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null) ||
	SOURCE_DATE_EPOCH=$(stat -c %Y Cargo.toml)
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/buildbot-irc

DESTDIR=$root PREFIX=/usr SYSCONFDIR=/etc UNITDIR=/usr/lib/systemd/system BINARY=$binary \
	sh tests/install.sh install
gzip -9n "$root"/usr/share/man/man?/*
# These have names of their own in a package.
mv "$doc/CHANGES.md" "$doc/changelog"
rm "$doc/LICENSE"
cat >"$doc/changelog.Debian" <<END
buildbot-irc ($version) unstable; urgency=medium

  * Package of buildbot-irc $upstream; see changelog.gz.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END
gzip -9n "$doc/changelog" "$doc/changelog.Debian"

# A static program depends on nothing.
mkdir "$work/debian"
printf 'Source: buildbot-irc\n\nPackage: buildbot-irc\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O --ignore-missing-info root/usr/bin/buildbot-irc 2>"$work/errors") ||
	fail "$(cat "$work/errors")"
depends=${depends#shlibs:Depends=}

# Each crate once, without our own, which comes first; and OpenSSL, where it is no library of the system.
${CARGO:-cargo} tree --locked --edges normal,no-proc-macro --prefix none --format '{p}, {l}' |
	sed '1d; s/ (\*)$//; s/^/  /' | LC_ALL=C sort -u >"$work/crates"
case $depends in
*libssl*) ;;
*) echo "  OpenSSL, Apache-2.0" >>"$work/crates" ;;
esac
holder=$(sed -n 's/^Copyright (c) //p' LICENSE)
sed '1,/^Copyright/d' LICENSE | sed '1d; s/^$/./; s/^/ /' >"$work/licence"
sed -e "/@CRATES@/{r $work/crates" -e 'd}' -e "/@LICENSE@/{r $work/licence" -e 'd}' \
	-e "s/@COPYRIGHT@/$holder/" doc/debian/copyright >"$doc/copyright"

# KiB, as dpkg-gencontrol counts: each file rounded up, one for everything else.
size=$(find "$root" -type f -printf '%s\n' -o -printf '1\n' | awk '{ n += int(($1 + 1023) / 1024) } END { print n }')

mkdir "$root/DEBIAN"
sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s|@MAINTAINER@|$maintainer|; s/@SIZE@/$size/" \
	-e "s/@DEPENDS@/$depends/; /^Depends: \$/d" doc/debian/control >"$root/DEBIAN/control"
echo /etc/buildbot-irc/bot.conf >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f | LC_ALL=C sort | xargs md5sum) >"$root/DEBIAN/md5sums"
install -m 0755 doc/debian/postinst doc/debian/prerm doc/debian/postrm "$root/DEBIAN/"

mkdir -p "$output"
# More threads would cut the archive elsewhere.
DPKG_DEB_THREADS_MAX=1 dpkg-deb --root-owner-group -Zxz --build "$root" "$output/buildbot-irc_${version}_$arch.deb"
