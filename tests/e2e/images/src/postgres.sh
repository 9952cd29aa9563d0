#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the database cluster in $PGDATA if it is empty, then becomes the server.
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    "$bin/initdb" --pgdata="$PGDATA" --username=postgres --auth=trust --no-sync >/dev/null
    echo "host all all all trust" >> "$PGDATA/pg_hba.conf"
fi
exec "$bin/postgres" -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp -c jit=off "$@"
