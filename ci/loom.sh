#!/usr/bin/env bash
# The models of what crosses threads, over all interleavings. Its own target directory: the cfg
# would rebuild everything else otherwise. With --mutations it shows that the models can fail: in a
# copy of the source it weakens an ordering or drops a step, one at a time, and a model must notice.
# A word behind it picks the mutations that are described with it.
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTFLAGS="--cfg rowship_loom"
target="${CARGO_TARGET_DIR:-target}/loom"
# The copy has one of its own: cargo would take what was built of it for what is built of this.
[ "${1:-}" != --mutations ] || target="$target-mutations"
mkdir -p "$target"
CARGO_TARGET_DIR="$(cd "$target" && pwd)"
export CARGO_TARGET_DIR
# Linking across packages takes longer than the models do.
export CARGO_PROFILE_RELEASE_LTO=off
if [ "${1:-}" != --mutations ]; then
    exec cargo test --package loom-tests --release --locked "$@"
fi

command -v perl > /dev/null || { echo "loom: mutations skipped, no perl"; exit 0; }
copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM
cp -r Cargo.toml Cargo.lock engine bench loom-tests "$copy"
failures=0 only="${2:-}"

# mutate FILE WHAT SUBSTITUTION MODEL: after the substitution (perl, on the whole file) MODEL fails.
mutate() {
    local file="$1" what="$2" substitution="$3" model="$4" log="$copy/log" verdict
    [[ "$what" == *"$only"* ]] || return 0
    perl -0777 -pe "$substitution" "$file" > "$copy/$file"
    if cmp -s "$file" "$copy/$file"; then
        verdict="FAILED: the source has changed, this mutation finds nothing"
    elif (cd "$copy" && cargo test --package loom-tests --release --locked "$model") \
        > "$log" 2>&1; then
        verdict="FAILED: no model notices"
    elif grep -q '^error: could not compile' "$log"; then
        tail -n 20 "$log"
        verdict="FAILED: it does not compile"
    else
        verdict=noticed
    fi
    [ "$verdict" = noticed ] || failures=$((failures + 1))
    printf '%-11s %-62s %s\n' "$(basename "$file" .rs)" "$what" "$verdict"
    cp "$file" "$copy/$file"
}

watermark=engine/sync/src/watermark.rs
countdown=engine/sync/src/countdown.rs
stock=engine/sync/src/stock.rs
publish=engine/src/apply/publish.rs
snapshots=engine/src/apply/snapshots.rs
mutate $watermark "advance without release" 's/to, Ordering::Release/to, Ordering::Relaxed/' watermark
mutate $watermark "get without acquire" 's/load\(Ordering::Acquire/load(Ordering::Relaxed/' watermark
mutate $countdown "arrive without release" 's/1, Ordering::AcqRel/1, Ordering::Acquire/' countdown
mutate $countdown "arrive without acquire" 's/1, Ordering::AcqRel/1, Ordering::Release/' countdown
mutate $countdown "the amount is added behind the arrival" \
    's/( *self\.state\.sum\.fetch_add[^;]*;\n)(.*?let before =[^;]*;\n)/$2$1/s' countdown
mutate $stock "who waits is told before the thing is back" \
    's/( *self\.home\.free\(\)\.extend[^;]*;\n)( *\(self\.home\.returned\)\(\);\n)/$2$1/' stock
mutate $stock "nobody is told" 's/ *\(self\.home\.returned\)\(\);\n//' stock
mutate $stock "the thing does not come back" 's/extend\(thing\)/extend(thing.filter(|_| false))/' stock
mutate $publish "the table is told behind visible" \
    's/( *published\(mark\);\n)( *self\.publish\(mark\);\n)/$2$1/' who_sees_visible
mutate $publish "the table is not told" 's/ *published\(mark\);\n/let _ = published;\n/' applied
mutate $publish "visible moves before the count, outside the lock" \
    's/( *let mut present = self\.lock.*?;\n.*?;\n)( *self\.visible\.advance.*?;\n)/$2$1/s' count_and
mutate $publish "the count is left behind" 's/\*present = mark;/present.lsn = mark.lsn;/' count_and
mutate $publish "visible is left behind" 's/ *self\.visible\.advance\(mark\.lsn\.0\);\n//' applied
mutate $snapshots "a collection forgets the pins" \
    's/positions\.pins\.keys\(\)\.chain\(&positions\.restarts\)/positions.restarts.iter()/' pinned
mutate $snapshots "a collection does not raise the floor" \
    's/ *self\.floor\.fetch_max[^;]*;\n//' unpinned
mutate $snapshots "a pin is not counted" 's/or_default\(\) \+= 1/or_default() += 0/' pinned

[ "$failures" -eq 0 ] || { echo "loom: $failures mutations were not noticed"; exit 1; }
echo "loom: every mutation was noticed"
