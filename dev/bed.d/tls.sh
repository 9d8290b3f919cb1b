# shellcheck shell=bash
# Certificates for CRI over mutual TLS, and the wrong ones that fault tests need. All in $BED/tls:
#
#   ca, server, client    the good set; server is valid for the addresses of node_up and vm_up and for localhost
#   other-ca, stranger    another authority, and a client certificate that it signed
#   expired               a client certificate of the good authority that ended in 2001
#   expired-server        the same of a server

tls_make() {
  [ ! -e "$BED/tls/server.crt" ] || return 0
  local new=$BED/tls.new
  rm -rf "$new"
  mkdir -p "$new"
  tls_authority "$new" ca
  tls_authority "$new" other-ca
  tls_sign "$new" ca server serverAuth -days 3650
  tls_sign "$new" ca client clientAuth -days 3650
  tls_sign "$new" other-ca stranger clientAuth -days 3650
  tls_sign "$new" ca expired clientAuth -startdate 20000101000000Z -enddate 20010101000000Z
  tls_sign "$new" ca expired-server serverAuth -startdate 20000101000000Z -enddate 20010101000000Z
  chmod 600 "$new"/*.key
  rm -rf "$BED/tls"
  mv "$new" "$BED/tls"
}

tls_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

tls_authority() { # DIRECTORY NAME
  openssl req -x509 "${tls_key[@]}" -days 3650 -subj "/CN=crimux-bed-$2" \
    -keyout "$1/$2.key" -out "$1/$2.crt" 2>/dev/null
}

tls_sign() { # DIRECTORY AUTHORITY NAME USAGE VALIDITY...
  local directory=$1 authority=$2 name=$3 usage=$4 work
  shift 4
  work=$(mktemp -d "$directory/work.XXXXXX")
  openssl req "${tls_key[@]}" -subj "/CN=$name" -keyout "$directory/$name.key" -out "$work/request" 2>/dev/null
  : >"$work/index"
  cat >"$work/config" <<CONFIG
[ca]
default_ca = bed
[bed]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = extensions
[any]
commonName = supplied
[extensions]
extendedKeyUsage = $usage
subjectAltName = DNS:localhost,DNS:$name,DNS:vm,DNS:r1,DNS:r2,IP:127.0.0.1,IP:10.99.0.2,IP:10.77.1.2,IP:10.77.2.2
CONFIG
  # `openssl ca`, since it alone can sign for a time in the past.
  openssl ca -batch -notext -config "$work/config" -cert "$directory/$authority.crt" \
    -keyfile "$directory/$authority.key" -in "$work/request" -out "$directory/$name.crt" "$@" 2>"$work/log" ||
    { cat "$work/log" >&2; die "no certificate for $name"; }
  rm -rf "$work"
}
