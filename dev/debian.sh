# shellcheck shell=bash
# Debian packages, installed by name when they are missing and nothing else: no service of theirs is started.

missing_packages() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

# install_packages PACKAGE...: fails, and says why, where this is not Debian, not root, or the packages cannot be had.
install_packages() {
  local missing policy=/usr/sbin/policy-rc.d made_policy=
  command -v dpkg-query >/dev/null || { echo "this is not Debian: install $* yourself" >&2; return 1; }
  mapfile -t missing < <(missing_packages "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || { echo "not root: install ${missing[*]} (apt-get install)" >&2; return 1; }
  echo "installing Debian packages: ${missing[*]}" >&2
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    made_policy=yes
  fi
  local result=0
  apt_install "${missing[@]}" || { apt-get update -qq && apt_install "${missing[@]}"; } || result=$?
  [ -z "$made_policy" ] || rm -f $policy
  [ "$result" = 0 ] || { echo "could not install: ${missing[*]}" >&2; return 1; }
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends "$@" >/dev/null </dev/null
}
