#!/bin/sh
# Runs the tests that need a master with older releases of Buildbot.
set -eu

for version in 2.10.5 3.11.9; do
	sh tests/common/setup.sh $version
	BUILDBOT=$version ${CARGO:-cargo} test --locked --no-fail-fast --test announcements --test authority \
		--test branches --test changes --test commands --test master --test reasons -- --test-threads=4
done
