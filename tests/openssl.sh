#!/bin/sh
# Says what a failed build lacks if that is OpenSSL's headers. Always fails, as the build did.
set -eu

pkg-config --exists openssl || {
	echo "OpenSSL's headers are missing: install pkg-config and libssl-dev (openssl-devel, openssl-dev)," >&2
	echo "or build with them: make FEATURES=vendored" >&2
}
exit 1
