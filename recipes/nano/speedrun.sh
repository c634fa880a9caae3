#!/bin/sh
# From a folder of raw videos to a model like the embedded one, in one file to be read from top to bottom:
#
#   sh recipes/nano/speedrun.sh VIDEOS [WORK]
#
# WORK (else runs/speedrun) gets all of it. Stopped anywhere, the same command goes on there. On two CPU cores it takes a day,
# most of it the last training; STEPS=10 before the command cuts every training to ten steps, to see that all goes through.
set -eu
if [ $# -lt 1 ]; then
    echo "usage: sh $0 VIDEOS [WORK]" >&2
    exit 2
fi
videos=$1
work=${2:-runs/speedrun}

# What every training shares: the curated clips, a tenth of their sources kept for evaluation, nothing left out by name.
train() {
    name=$1
    shift
    svd train "nano/$name" --set run.folder="$work/$name" --set data.source="$work/curated/dataset" \
        --set 'data.exclude=[]' --set 'data.held_out=[]' --set data.held_out_share=0.1 \
        ${STEPS:+--set run.num_steps="$STEPS"} "$@"
}

# 1. Raw videos become clips without a cut, measured, filtered and packed.
svd curate run "$videos" "$work/curated" --recipe nano/curate

# 2. The autoencoder, first on images, then the temporal layers of its decoder on clips.
train vae
train vae-temporal --set task.start="$work/vae"

# 3. The image model, then the video model that it becomes, then the same at higher noise.
train stage1 --set task.vae="$work/vae-temporal"
train stage2 --set task.vae="$work/vae-temporal" --set task.start="$work/stage1/bundle"
train stage3 --set task.vae="$work/vae-temporal" --set task.start="$work/stage2/bundle"

# 4. Image to video: given a frame, the clip that it begins.
train i2v --set task.vae="$work/vae-temporal" --set task.start="$work/stage3/bundle"

# 5. What it can do, on a page and in a video.
svd train "$work/i2v" --report
mkdir -p "$work/made"
svd sample assets/examples/*.jpg --bundle "$work/i2v/bundle" --output "$work/made" --overwrite
svd eval faithful "$work/made"
svd eval flicker "$work/made"
