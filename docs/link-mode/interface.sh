wireloom device wg0 --peer-lookup gateway --source-check off
wg setconf wg0 /etc/wireguard/wg0.conf
ip address add 100.64.0.1/24 dev wg0
ip address add fd64::1/64 dev wg0 nodad
ip link set wg0 mtu 1420 up
sysctl --quiet net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.wg0.send_redirects=0
