#!/bin/sh
# Audits the crates with cargo-deny, by the rules in tests/deny.toml. Builds it first, once, in five minutes.
set -eu

deny=target/tools/bin/cargo-deny
if ! [ -x $deny ]; then
	deny=$(command -v cargo-deny) || {
		${CARGO:-cargo} install --quiet --locked --root target/tools --target-dir target/tools/build cargo-deny@0.20.2
		rm -rf target/tools/build
		deny=target/tools/bin/cargo-deny
	}
fi
# These need no network once the crates are here.
$deny --locked --all-features --config tests/deny.toml check bans licenses sources
# This one fetches RustSec's database from GitHub.
$deny --locked --all-features --config tests/deny.toml check advisories || {
	echo "make audit: known vulnerabilities, or no way to RustSec's database: see above. All else is well." >&2
	exit 1
}
