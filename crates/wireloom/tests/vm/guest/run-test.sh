#!/bin/sh
# Runs a test with a back end, and reports its output to the host in one piece: other tests run beside it.
export WIRELOOM_LAB_BACKEND=$1
name=$2
title=$1::$name
said=/run/said/$title
tell() { flock /run/telling "$@"; }

tell echo "start $title"
read -r begun _ </proc/uptime
timeout --kill-after=5 "$LIMIT" /functional --exact "$name" --nocapture >"$said" 2>&1
status=$?
read -r ended _ </proc/uptime
tell sh -c "echo 'end $title $status $begun $ended'; sed 's/^/|/' '$said'"
# The host counts failures. (xargs would stop at status 255.)
rm "$said"
