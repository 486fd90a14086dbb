# Sourced by the scripts that build: makes cargo reachable, or says what is missing and how to get
# it. The caller sets `name`, by which it is known to its user.
# shellcheck shell=sh

: "${name:?set by the script that sources this}"

fail() {
    printf '%s: %s\n' "$name" "$1" >&2
    exit 2
}

[ "$(uname -s)" = Linux ] || fail "Heirloom runs on Linux only (pidfd, /proc, SCM_RIGHTS)."

# A shell that was open while Rust was installed does not have it on its path yet.
if ! command -v cargo >/dev/null 2>&1 && [ -x "${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    export PATH
fi
command -v cargo >/dev/null 2>&1 || fail "cargo is missing. Install Rust:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
found=$(cargo --version | cut -d ' ' -f 2 | cut -d - -f 1)
oldest=$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)
[ "$oldest" = "$wanted" ] || fail "Rust $found is too old, $wanted or later is needed. Run: rustup update stable
    (a distribution's Rust: install from https://rustup.rs beside it)"

command -v cc >/dev/null 2>&1 || fail "a C linker (cc) is missing. Install one:
    Debian, Ubuntu: sudo apt install gcc libc6-dev
    Fedora:         sudo dnf install gcc
    Arch:           sudo pacman -S gcc
    Alpine:         sudo apk add gcc musl-dev"
