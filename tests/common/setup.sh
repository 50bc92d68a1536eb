#!/bin/sh
# Prepares what the tests need, from the root of the repository: the servers
# and tools of the system, and target/venv with Buildbot. Does nothing, and
# fast, when all is there.
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
need openssl command -v openssl
need util-linux command -v setpriv
need pkg-config command -v pkg-config
need libssl-dev pkg-config --exists openssl
need python3 command -v python3
need python3-venv python3 -c 'import ensurepip, venv'

if [ -n "$missing" ]; then
	command="apt-get install -y --no-install-recommends$missing"
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		fail "the tests need more packages; as root, run: $command"
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update && $command || fail "could not install; as root, run: apt-get update && $command"
fi

# The copy of the requirements inside says what the environment was made from.
venv=target/venv
if ! cmp -s tests/requirements.txt $venv/requirements.txt || ! $venv/bin/python -c 'import buildbot' 2>/dev/null; then
	rm -rf $venv
	mkdir -p target
	python3 -m venv $venv || fail "python3 -m venv $venv failed"
	$venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt ||
		fail "pip could not install tests/requirements.txt"
	cp tests/requirements.txt $venv/requirements.txt
fi
