#!/bin/sh
# Runs the test of this name, and reports its output to the host in one piece: other tests run beside it.
name=$1
said=/run/said/$name
tell() { flock /run/telling "$@"; }

tell echo "start $name"
read -r begun _ </proc/uptime
timeout --kill-after=5 "$LIMIT" /functional --exact "$name" --nocapture >"$said" 2>&1
status=$?
read -r ended _ </proc/uptime
tell sh -c "echo 'end $name $status $begun $ended'; sed 's/^/|/' '$said'"
# The host counts failures. (xargs would stop at status 255.)
rm "$said"
