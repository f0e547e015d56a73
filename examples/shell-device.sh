#!/bin/sh
# A device in 25 lines: mosquitto_sub, curl and mosquitto_pub are all it takes to be provisioned.
# Usage: shell-device.sh DEVICE_ID [BROKER_HOST [BROKER_PORT]]   Ctrl-C ends it. It checks size and hash.
set -eu
id=$1 host=${2:-127.0.0.1} port=${3:-1883} root=devices/$1 file=$(mktemp)
trap 'rm -f "$file"' EXIT
pub() { mosquitto_pub -h "$host" -p "$port" -q 1 -t "$root/$1" -m "$2" $3; }
sub() { mosquitto_sub -h "$host" -p "$port" -q 1 -c -i "$id" -t "$root/package" -t "$root/commands/+" "$@"; }
field() { printf %s "$message" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p;s/.*\"$1\":\([0-9]*\)[,}].*/\1/p"; }
event() { pub "events/$1" "$(printf '{"v":1,"instance_id":"%s","package_id":"%s","attempt":%s,%s}' \
  "$(field instance_id)" "$(field package_id)" "$(field attempt)" "$2")" ""; }
download() {
  event DownloadStarted "\"size_bytes\":$(field size_bytes)"
  curl -fsS --retry 3 -o "$file" "$(field url)" || { event DownloadFailed '"reason":"http-error"'; return; }
  size=$(wc -c <"$file") sha256=$(sha256sum "$file" | cut -d' ' -f1)
  [ "$size $sha256" = "$(field size_bytes) $(field sha256)" ] || { event DownloadFailed '"reason":"hash-mismatch"'; return; }
  event DownloadCompletedAck "$(printf '"size_bytes":%d,"sha256":"%s"' "$size" "$sha256")"; }
sub -E # The persistent session begins here: what comes from now on is kept until it is read below.
pub presence '{"v":1,"state":"online"}' -r
pub register '{"v":1,"model":"shell","firmware_version":"0.0.1","tags":{"written-in":"sh"}}' ""
sub -F '%t %p' --will-topic "$root/presence" --will-payload '{"v":1,"state":"offline"}' --will-qos 1 --will-retain |
  while read -r topic message; do case $topic in */package) download ;; */commands/Activate)
    event ActivationCompleted "\"firmware_version\":\"$(field release)\"" ;; esac; done
