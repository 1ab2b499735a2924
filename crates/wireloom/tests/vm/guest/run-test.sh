#!/bin/sh
# Runs the test of that name, and tells the host of it in one piece: others run beside it.
name=$1
said=/run/said/$name
tell() { flock /run/telling "$@"; }

tell echo "start $name"
read -r begun _ </proc/uptime
timeout --kill-after=5 "$LIMIT" /functional --exact "$name" --nocapture >"$said" 2>&1
status=$?
read -r ended _ </proc/uptime
tell sh -c "echo 'end $name $status $begun $ended'; sed 's/^/|/' '$said'"
# A failure is the host's to count: xargs would stop at status 255.
rm "$said"
