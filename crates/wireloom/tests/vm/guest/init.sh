#!/bin/sh
# The virtual machine's first process: prepares it, runs the tests in /together, then those in /alone, and turns it
# off. A line of these files is a back end and a test. Its report to the host (report.rs reads it) goes to the second
# serial port; the first is the kernel's console.
export PATH=/usr/bin HOME=/ NO_COLOR=1
/usr/bin/busybox --install -s /usr/bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/net
mount -t devpts devpts /dev/pts
ln -s /proc/self/fd /dev/fd
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/said
ip link set lo up
modprobe tun
hostname vm
# The largest buffer that an ordinary user's capture may ask for: captures are emptied late here.
echo 67108864 >/proc/sys/net/core/rmem_max
# On each processor, one queue holds the packets of all tests' networks until they are handled: late, here.
echo 65536 >/proc/sys/net/core/netdev_max_backlog

# wireloom.pace=… wireloom.parallel=… wireloom.limit=…
for word in $(cat /proc/cmdline); do
    case $word in
    wireloom.pace=*) export WIRELOOM_LAB_PACE=${word#*=} ;;
    wireloom.limit=*) export LIMIT=${word#*=} ;;
    wireloom.parallel=*) parallel=${word#*=} ;;
    esac
done
stty -F /dev/ttyS1 raw -echo
exec >/dev/ttyS1
read -r up _ </proc/uptime
echo "up $up $(uname -r)"
xargs -r -n 2 -P "$parallel" /run-test </together
xargs -r -n 2 /run-test </alone
echo "done"
poweroff -f
