# Waits until the test that started it is done with a node (its end of the pipe closes, however the
# test ends), then takes away what the node left. ROOT is the node's directory; its processes name it.
# NAMESPACES are network namespaces that go with it, and all that still runs in them. Its standard
# output may hold a lock that is given back when all this is done: nothing is written there.
trap '' INT TERM HUP
cat >/dev/null

nodes=$(cat "$ROOT/node-id" 2>/dev/null)
round=0
while [ $round -lt 50 ]; do
  round=$((round + 1))
  left=
  for entry in $(grep -laF "$ROOT/" /proc/[0-9]*/cmdline 2>/dev/null); do
    pid=${entry#/proc/}
    pid=${pid%/cmdline}
    # A node that never told its id is known by the cgroup of its shims.
    found=$(sed -n 's|.*:/skep/\([^/]*\)/.*|\1|p' "/proc/$pid/cgroup" 2>/dev/null | head -n 1)
    case " $nodes " in *" $found "*) ;; *) nodes="$nodes $found" ;; esac
    kill -9 "$pid" 2>/dev/null && left=yes
  done
  for node in $nodes; do
    for group in /sys/fs/cgroup/skep/$node /sys/fs/cgroup/*/skep/$node; do
      [ -d "$group" ] || continue
      for pid in $(find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null); do
        kill -9 "$pid" 2>/dev/null && left=yes
      done
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
      [ -d "$group" ] && left=yes
    done
  done
  for name in $NAMESPACES; do
    for pid in $(ip netns pids "$name" 2>/dev/null); do
      kill -9 "$pid" 2>/dev/null && left=yes
    done
  done
  [ -n "$left" ] || break
  sleep 0.1
done
for name in $NAMESPACES; do
  ip netns del "$name" 2>/dev/null
done
# A test may have given the node a disk of its own.
while umount -l "$ROOT/data" 2>/dev/null; do :; done
[ -n "$SKEP_TEST_KEEP" ] || rm -rf "$ROOT"
