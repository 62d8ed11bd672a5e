#!/bin/sh
# The whole chain, from nothing but photos and a driving video: it draws a small data set of synthetic people, trains a
# prior on it, personalizes it with your photos, drives it and measures it. Every step is one command, to be copied.
#
# usage: sh examples/pipeline.sh PHOTOS DRIVER OUTPUT_DIRECTORY
#
# With PEOPLE=0 the shipped prior is used: the best choice unless you have a data set of your own.
# Other settings, with their defaults:
PEOPLE=${PEOPLE:-16}                # synthetic people to draw and to train on
VIEWS=${VIEWS:-16}                  # pictures of each
SIZE=${SIZE:-256}                   # side of all pictures in pixels
TRAIN_FLAGS=${TRAIN_FLAGS:-}        # more options of train-prior, for example "--steps 2000"
INVERT_FLAGS=${INVERT_FLAGS:-}      # more options of invert
FINETUNE_FLAGS=${FINETUNE_FLAGS:-}  # more options of finetune
REENACT_FLAGS=${REENACT_FLAGS:-}    # more options of reenact
EVAL_FLAGS=${EVAL_FLAGS:-}          # more options of eval
set -eu
if [ $# -ne 3 ]; then
    sed -n '2,/^set -eu/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
    exit 2
fi
photos=$1 driver=$2 out=$3
mkdir -p "$out"
# The names of the options hold no spaces: they may split into words, file names may not.
# shellcheck disable=SC2086
{
avtool track "$photos" -o "$out/track.json" --overlay "$out/fit.png" --force
avtool init-points "$out/track.json" -o "$out/points.ply" --force

prior=default
if [ "$PEOPLE" -gt 0 ]; then
    avtool synth-data -o "$out/heads" --identities "$PEOPLE" --views "$VIEWS" --size "$SIZE"
    avtool train-prior "$out/heads" -o "$out/prior.safetensors" --image-size "$SIZE" $TRAIN_FLAGS --force
    prior=$out/prior.safetensors
fi

avtool invert "$out/track.json" --prior "$prior" -o "$out/inverted.safetensors" $INVERT_FLAGS --force
avtool finetune "$out/inverted.safetensors" "$out/track.json" -o "$out/avatar.safetensors" $FINETUNE_FLAGS --force
avtool reenact "$out/avatar.safetensors" "$driver" -o "$out/out.mp4" --size "$SIZE" $REENACT_FLAGS --force
avtool eval "$out/avatar.safetensors" "$out/track.json" -o "$out/metrics.json" --montage "$out/contact_sheet.png" \
    --size "$SIZE" $EVAL_FLAGS --force
}
echo "$out/out.mp4"
