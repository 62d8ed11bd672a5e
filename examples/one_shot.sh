#!/bin/sh
# Portrait4D-v2's route: learn a network that makes a head of one photo, show a filmed person from sides that no camera saw,
# teach the network to move from that, drive a photo in one pass, and let the prior and the avatar learn from the new views.
# Every step is one command, to be copied.
#
# usage: sh examples/one_shot.sh PHOTOS VIDEO DRIVER OUTPUT_DIRECTORY
#
# PHOTOS and VIDEO show one person, DRIVER anybody. The defaults are a small trial; a network worth having takes some
# thousand people and a GPU, or days. Settings, with their defaults:
PEOPLE=${PEOPLE:-64}                # synthetic people to draw and to train on
VIEWS=${VIEWS:-8}                   # cameras around each of their moments
EXPRESSIONS=${EXPRESSIONS:-3}       # moments of each
SIZE=${SIZE:-128}                   # side of the portrait's pictures in pixels
PORTRAIT_FLAGS=${PORTRAIT_FLAGS:-}  # more options of both stages of train-portrait, for example "--steps 2000"
PSEUDO_FLAGS=${PSEUDO_FLAGS:-}      # more options of pseudo-mv
TRAIN_FLAGS=${TRAIN_FLAGS:-}        # more options of train-prior
INVERT_FLAGS=${INVERT_FLAGS:-}      # more options of invert
FINETUNE_FLAGS=${FINETUNE_FLAGS:-}  # more options of finetune
REENACT_FLAGS=${REENACT_FLAGS:-}    # more options of reenact
set -eu
if [ $# -ne 4 ]; then
    sed -n '2,/^set -eu/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
    exit 2
fi
photos=$1 video=$2 driver=$3 out=$4
mkdir -p "$out"
# The names of the options hold no spaces: they may split into words, file names may not.
# shellcheck disable=SC2086
{
# Psi_3d: one picture in, the same moment from another side out.
avtool synth-data -o "$out/heads" --identities "$PEOPLE" --views "$VIEWS" --expressions "$EXPRESSIONS" --size "$SIZE"
avtool train-portrait "$out/heads" --stage static --size "$SIZE" -o "$out/static.safetensors" $PORTRAIT_FLAGS --force

# Pseudo views of a real person, and Psi, which moves.
avtool pseudo-mv "$video" --portrait "$out/static.safetensors" -o "$out/mv" $PSEUDO_FLAGS --force
avtool train-portrait "$out/heads" "$out/mv" --stage motion --init "$out/static.safetensors" \
    -o "$out/portrait.safetensors" $PORTRAIT_FLAGS --force

# One photo, no fitting: the most frontal of the photos is the source.
avtool track "$photos" -o "$out/track.json" --force
avtool reenact "$out/portrait.safetensors" --source "$out/track.json" "$driver" -o "$out/one_shot.mp4" --size "$SIZE" \
    $REENACT_FLAGS --force

# Both systems joined: the prior and the avatar learn from the new views what a single camera never showed.
avtool train-prior "$out/heads" "$out/mv" -o "$out/prior.safetensors" --image-size "$SIZE" $TRAIN_FLAGS --force
avtool invert "$out/track.json" --prior "$out/prior.safetensors" -o "$out/inverted.safetensors" $INVERT_FLAGS --force
avtool finetune "$out/inverted.safetensors" "$out/track.json" --pseudo "$out/mv" -o "$out/avatar.safetensors" \
    $FINETUNE_FLAGS --force
avtool reenact "$out/avatar.safetensors" "$driver" -o "$out/avatar.mp4" --size "$SIZE" $REENACT_FLAGS --force
}
echo "$out/one_shot.mp4"
