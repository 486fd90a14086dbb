#!/bin/bash
# Boots a systemd in a root of its own and makes sure that nothing of it is left.
#
#   keeper.sh boot LOWER DIRECTORY [FILE:PATH]...
#
# It reads nothing from stdin but its end: then everything is torn down. LOWER is the root to start from (/ or a debootstrap);
# it is never written to: a tmpfs lies over it. DIRECTORY is an empty directory of the caller's; it is removed at the end.
# Each FILE is seen at PATH in the root, read-only. The boot is reported to
# $NOTIFY_SOCKET, which is DIRECTORY.notify; the console goes to stdout.
#
# Three layers, so that no way of dying leaves anything: the caller holds the other end of stdin; this script waits for its
# end and cleans up; what it started lives in namespaces whose first process is killed with it, and the kernel then ends every
# process and unmounts every mount in them.
set -euo pipefail

# The cgroup hierarchies that nspawn makes groups in: version 2 alone, or beside version 1.
hierarchies() {
    if [[ -d /sys/fs/cgroup/unified ]]; then
        printf '%s\n' /sys/fs/cgroup/unified /sys/fs/cgroup/systemd
    else
        printf '%s\n' /sys/fs/cgroup
    fi
}

group_name() { printf 'heirloom-rig-%s' "$1"; }

# Removes a cgroup tree. Its last processes may still be going: rmdir refuses until then.
remove_groups() {
    local hierarchy group attempt
    while read -r hierarchy; do
        group=$hierarchy/$1
        for ((attempt = 0; attempt < 100; attempt++)); do
            [[ -d $group ]] || break
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05
        done
        [[ ! -d $group ]] || echo "keeper: cannot remove the cgroup $group" >&2
    done < <(hierarchies)
}

# Groups of keepers that were killed themselves; their processes are gone, so the groups are empty.
remove_stale_groups() {
    local hierarchy group
    while read -r hierarchy; do
        for group in "$hierarchy"/heirloom-rig-*; do
            [[ -d $group ]] || continue
            [[ -d /proc/${group##*-} ]] || remove_groups "${group##*/}"
        done
    done < <(hierarchies)
}

# Set by boot, for cleanup, which may run after boot has returned.
directory='' name='' reader='' container=''

cleanup() {
    trap - EXIT
    # Quietly: the shell would report each of them as killed.
    {
        [[ -z $reader ]] || kill -KILL "$reader" || true
        [[ -z $container ]] || kill -KILL "$container" || true
        wait "$reader" "$container" || true
    } 2>/dev/null
    remove_groups "$name"
    rm -rf -- "$directory" "$directory.notify"
}

boot() {
    local lower=$1 hierarchy
    directory=$2 name=$(group_name $$)
    shift 2
    remove_stale_groups
    while read -r hierarchy; do
        mkdir "$hierarchy/$name"
    done < <(hierarchies)

    trap cleanup EXIT
    trap 'exit 143' TERM INT HUP

    exec 3<&0
    cat <&3 >/dev/null &
    reader=$!
    setpriv --pdeathsig KILL \
        unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc \
        bash "${BASH_SOURCE[0]}" contain "$lower" "$directory" "$name" "$@" </dev/null 3<&- &
    container=$!
    # Either the caller has ended or let go, or the boot failed: both end everything.
    wait -n || true
}

# Runs as the first process of its own process namespace, in its own mount namespace: no mount here is seen outside.
contain() {
    local lower=$1 directory=$2 name=$3 hierarchy root
    shift 3
    while read -r hierarchy; do
        echo 0 >"$hierarchy/$name/cgroup.procs"
    done < <(hierarchies)
    mount -t tmpfs -o mode=0755,size=1g tmpfs "$directory"
    mkdir "$directory"/{upper,work,root}
    root=$directory/root
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$directory/upper,workdir=$directory/work" "$root"
    # Nothing that an administrator enabled in the lower root is started here, and no journal of it is read.
    mount -t tmpfs -o mode=0755 tmpfs "$root/etc/systemd"
    mount -t tmpfs -o mode=0755 tmpfs "$root/var/log"
    rm -f "$root/etc/machine-id"
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    exec systemd-nspawn --quiet --directory="$root" --boot --notify-ready=yes --register=no --keep-unit \
        --private-network --console=pipe --link-journal=no --resolv-conf=off --timezone=off --settings=no \
        --machine="$name" --hostname=rig "${@/#/--bind-ro=}" -- --unit=basic.target --log-target=journal --show-status=no
}

case ${1:-} in
boot) boot "${@:2}" ;;
contain) contain "${@:2}" ;;
*)
    echo "usage: ${0##*/} boot LOWER DIRECTORY" >&2
    exit 2
    ;;
esac
