#!/bin/sh
# Makes target/buildbot-irc-VERSION.tar.xz from what is committed and the crates that Cargo.lock names. It
# builds without a network: `make`, `make static`. The same commit gives the same bytes.
set -eu

name=buildbot-irc-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
git rev-parse --verify --quiet HEAD >/dev/null || { echo "make dist needs a git checkout" >&2; exit 1; }
rm -rf "target/dist" && mkdir -p "target/dist/$name/.cargo"
git archive HEAD | tar -x -C "target/dist/$name"
cd "target/dist/$name"
${CARGO:-cargo} vendor --locked --versioned-dirs vendor > .cargo/config.toml
cd ..
tar --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw --mtime="@$(git log -1 --format=%ct)" -c "$name" |
	xz > "../$name.tar.xz"
cd .. && rm -rf dist
ls -l "$PWD/$name.tar.xz"
