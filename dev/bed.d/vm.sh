# shellcheck shell=bash
# A virtual machine that is a remote node: Debian's cloud kernel, and one initramfs with containerd and crun.
# Seen from the bed it is 10.99.0.2, its pods are 10.89.0.0/24; $BED/share is the same directory on both sides
# (virtiofs), for pod logs and for its certificates.
#
# KVM is used only where the processor shows real virtualisation; elsewhere QEMU emulates, which is slower but
# runs everywhere.

VM_IMAGE=$BED_CACHE/vm-1

vm_up() {
  namespace_alive || die "not up: $BED"
  [ ! -e "$RUN/vm.pid" ] || die "the VM is up already"
  install_packages "${VM_PACKAGES[@]}"
  vm_build
  tls_make
  mkdir -p "$BED/share/tls"
  cp "$BED/tls"/{ca.crt,server.crt,server.key} "$BED/share/tls/"
  inside ip tuntap add tap-vm mode tap
  inside ip addr add 10.99.0.1/24 dev tap-vm
  inside ip link set tap-vm up
  inside ip route replace 10.89.0.0/24 via 10.99.0.2
  spawn virtiofsd "$(vm_virtiofsd)" --socket-path="$RUN/virtiofs.sock" -o source="$BED/share" -o cache=none
  wait_until 10 "virtiofsd ($LOGS/virtiofsd.log)" test -S "$RUN/virtiofs.sock"
  vm_start
  wait_until 120 "the VM ($LOGS/vm.console)" grep -aqs 'successfully booted' "$LOGS/vm.console"
  say "vm: https://10.99.0.2:10010, certificates in $BED/tls, shared directory $BED/share"
}

vm_start() {
  local accelerator=(-accel "tcg,thread=multi,tb-size=128" -cpu max) memory=512M
  if grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo && [ -w /dev/kvm ]; then
    accelerator=(-accel kvm -cpu host)
  fi
  rm -f "$LOGS/vm.console"
  spawn vm qemu-system-x86_64 "${accelerator[@]}" -m "$memory" -smp 2 \
    -nodefaults -no-user-config -nographic -no-reboot \
    -object "memory-backend-memfd,id=memory,size=$memory,share=on" -machine pc,memory-backend=memory \
    -kernel "$VM_IMAGE/vmlinuz" -initrd "$VM_IMAGE/initramfs" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off bed.share=$BED/share" \
    -netdev tap,id=network,ifname=tap-vm,script=no,downscript=no \
    -device virtio-net-pci,netdev=network,romfile= \
    -chardev socket,id=share,path="$RUN/virtiofs.sock" -device vhost-user-fs-pci,chardev=share,tag=share \
    -device virtio-rng-pci -serial "file:$LOGS/vm.console"
}

# bookworm has it within QEMU's packages.
vm_virtiofsd() {
  local path
  for path in /usr/lib/qemu/virtiofsd /usr/libexec/virtiofsd; do
    [ ! -x "$path" ] || { echo "$path"; return; }
  done
  die "virtiofsd is missing"
}

# Builds kernel and initramfs, once for all beds.
vm_build() {
  [ ! -d "$VM_IMAGE" ] || return 0
  mkdir -p "$BED_CACHE"
  (
    flock 9
    [ ! -d "$VM_IMAGE" ] || exit 0
    say "building the VM's kernel and file system"
    work=$(mktemp -d "$BED_CACHE/vm.XXXXXX")
    vm_kernel "$work"
    vm_root "$work/root" "$work/kernel"
    mkdir "$work/image"
    cp "$work"/kernel/boot/vmlinuz-* "$work/image/vmlinuz"
    (cd "$work/root" && find . | cpio -o -H newc --quiet) >"$work/image/initramfs"
    mv "$work/image" "$VM_IMAGE"
    rm -rf "$work"
  ) 9>"$BED_CACHE/lock"
  [ -d "$VM_IMAGE" ] || die "the VM could not be built"
}

# The kernel's package is only unpacked: installing it would change what this machine boots.
vm_kernel() { # WORK
  local package
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
  [ -n "$package" ] || die "no package linux-image-cloud-amd64 (apt-get update)"
  # apt's sandbox user cannot write here, which only costs a warning.
  (cd "$1" && apt-get download -qq "$package" 2>/dev/null) || die "could not download $package"
  dpkg -x "$1/$package"_*.deb "$1/kernel"
  depmod -b "$1/kernel" "$(basename "$1"/kernel/lib/modules/*)"
}

vm_root() { # ROOT KERNEL
  local root=$1 kernel=$2 applet library module version
  version=$(basename "$kernel"/lib/modules/*)
  mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,usr/lib/cni,lib64,lib/x86_64-linux-gnu,modules,root} \
    "$root"/{proc,sys,dev,run,tmp,var/lib,var/log,etc/cni}
  cp /bin/busybox "$root/bin/"
  for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
  # crun starts far faster than runc under emulation.
  cp /usr/bin/containerd /usr/bin/containerd-shim-runc-v2 /usr/bin/crun "$root/usr/bin/"
  cp /usr/lib/cni/{bridge,loopback,host-local} "$root/usr/lib/cni/"
  cp /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
  for library in $(ldd /usr/bin/crun /usr/bin/containerd /usr/bin/containerd-shim-runc-v2 2>/dev/null |
    awk '$3 ~ "^/" { print $3 }' | sort -u); do
    cp -L "$library" "$root/lib/x86_64-linux-gnu/"
  done
  for module in virtio_pci virtio_net overlay veth bridge virtiofs; do
    modprobe -S "$version" -d "$kernel" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
  done | awk '!seen[$0]++' | while read -r module; do
    cp "$module" "$root/modules/"
    basename "$module" >>"$root/modules/order"
  done
  echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
  echo root:x:0: >"$root/etc/group"
  echo 127.0.0.1 localhost >"$root/etc/hosts"
  : >"$root/etc/resolv.conf"
  cp "$PARTS"/guest/{init,node} "$root/"
  mkdir -p "$root/etc/containerd"
  cp "$PARTS/guest/10-vm.conflist" "$root/etc/cni/"
  cp "$PARTS/guest/containerd.toml" "$root/etc/containerd/config.toml"
  registry_mirror "$root/etc/containerd/certs.d" 10.99.0.1
}
