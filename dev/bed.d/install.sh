# shellcheck shell=bash
# The Debian packages the bed stands on, installed by name when they are missing.

PACKAGES=(containerd runc crun runsc containernetworking-plugins docker-registry skopeo umoci
  busybox-static iproute2 iptables curl openssl python3 util-linux)
# qemu-utils is named so that an autoremove does not take QEMU's parts away.
VM_PACKAGES=(qemu-system-x86 qemu-utils cpio kmod)

missing_packages() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

install_packages() {
  local missing policy=/usr/sbin/policy-rc.d made_policy=
  command -v dpkg-query >/dev/null || die "this is not Debian: install ${*} yourself"
  mapfile -t missing < <(missing_packages "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  say "installing Debian packages: ${missing[*]}"
  # The packages' own services are not wanted: the bed runs its daemons itself.
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    made_policy=yes
  fi
  local result=0
  apt_install "${missing[@]}" || { apt-get update -qq && apt_install "${missing[@]}"; } || result=$?
  [ -z "$made_policy" ] || rm -f $policy
  [ "$result" = 0 ] || die "could not install: ${missing[*]}"
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends "$@" >/dev/null </dev/null
}
