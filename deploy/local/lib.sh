# What the scripts of this folder share. Sourced, never run.
# shellcheck shell=bash disable=SC2034

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd -- "$here/../.." && pwd -P)

# Prints a sentence on standard error.
say() { printf '%s\n' "$*" >&2; }
die() {
  say "${0##*/}: $*"
  exit 1
}

# The folder as an absolute path, made when missing.
folder() { mkdir -p -- "$1" && (cd -- "$1" && pwd -P); }

# Where the demo installs, starts and writes everything; LOCAL_DIR in the environment moves it.
local_dir=$(realpath -m -- "${LOCAL_DIR:-$root/.local}")

# service_address NAME: the address of a service's /readyz and /metrics, chosen once and kept.
service_address() {
  local file
  file=$(folder "$local_dir/services")/$1.http
  [[ -s $file ]] || echo "127.0.0.1:$(free_port)" >"$file"
  cat -- "$file"
}

# A port of 127.0.0.1 that no process listens on, outside of the range that the kernel assigns to clients.
free_port() {
  local port
  while :; do
    port=$((10000 + (RANDOM * 32768 + RANDOM) % 22000))
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

listens() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Is this process alive? A zombie is not: a container may have no process that reaps it.
alive() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  [[ $stat != [ZX]* ]]
}

# alive_as PID NAME VARIABLE=VALUE: alive, the program is NAME, and it was started with that in its environment. A pid
# file outlives a reboot, after which another process may have the number. So no script signals by number alone.
alive_as() {
  alive "$1" && [[ $(cat "/proc/$1/comm" 2>/dev/null) == "$2" ]] && grep -qzxF -- "$3" "/proc/$1/environ" 2>/dev/null
}

# await SECONDS COMMAND...: true as soon as COMMAND is, false when it still is not after SECONDS.
await() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
}

gone() { ! alive "$1"; }

# end_process PID SIGNAL SECONDS: sends SIGNAL, and KILL after SECONDS; returns when the process is gone.
end_process() {
  kill "-$2" "$1" 2>/dev/null || true
  await "$3" gone "$1" || { kill -KILL "$1" 2>/dev/null || true; await 10 gone "$1"; }
}

# Eight characters that are this folder's own, the same each time.
short_name() { printf '%s' "$1" | sha256sum | cut -c1-8; }
