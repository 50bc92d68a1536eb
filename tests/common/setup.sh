#!/bin/sh
# Prepares what the tests need, from the root of the repository: the servers
# and tools of the system, and target/venv with Buildbot. Does nothing, and
# fast, when all is there. With an argument, a release of Buildbot for which
# there is tests/requirements-RELEASE.txt, it prepares target/venv-RELEASE too.
set -eu

fail() {
	echo "tests/common/setup.sh: $1" >&2
	exit 1
}

[ -f tests/requirements.txt ] || fail "run me from the root of the repository"
PATH=$PATH:/usr/sbin:/sbin

missing=
need() { # package, then a test that it is there
	package=$1
	shift
	"$@" >/dev/null 2>&1 || missing="$missing $package"
}
need ngircd command -v ngircd
need inspircd command -v inspircd
need anope command -v anope
need znc command -v znc
need openssl command -v openssl
need util-linux command -v setpriv
need pkg-config command -v pkg-config
need libssl-dev pkg-config --exists openssl
need python3 command -v python3
need python3-venv python3 -c 'import ensurepip, venv'
need dpkg-dev command -v dpkg-shlibdeps
need binutils command -v strip
need mandoc command -v mandoc
need systemd command -v systemd-analyze
need libltdl7 sh -c 'ldconfig -p | grep -q libltdl.so.7'

if [ -n "$missing" ]; then
	command="apt-get install -y --no-install-recommends$missing"
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		fail "the tests need more packages; as root, run: $command"
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update && $command || fail "could not install; as root, run: apt-get update && $command"
fi

# ircd-hybrid cannot be installed beside ngircd: unpacked, it serves the tests as well.
hybrid=target/hybrid
if [ ! -x $hybrid/usr/sbin/ircd-hybrid ]; then
	mkdir -p $hybrid
	(cd $hybrid && { apt-get download ircd-hybrid || { apt-get update && apt-get download ircd-hybrid; }; } &&
		dpkg -x ircd-hybrid_*.deb .) || fail "could not download and unpack the package ircd-hybrid into $hybrid"
fi

# The copy of the requirements inside says what the environment was made from.
environment() { # directory, requirements
	if cmp -s "$2" "$1/requirements.txt" && "$1/bin/python" -c 'import buildbot' 2>/dev/null; then
		return
	fi
	[ -f "$2" ] || fail "there is no $2"
	rm -rf "$1"
	mkdir -p target
	python3 -m venv "$1" || fail "python3 -m venv $1 failed"
	"$1/bin/pip" install --quiet --disable-pip-version-check -r "$2" || fail "pip could not install $2"
	cp "$2" "$1/requirements.txt"
}
environment target/venv tests/requirements.txt
[ $# = 0 ] || environment "target/venv-$1" "tests/requirements-$1.txt"
