# HAProxy with latency routing: the official image, and on top Python, numpy and this package, and no more of them than
# the commands open. Every stage stands on the same base, so that the Python that is copied fits the libraries it finds.
#
# 3.2 is a line with long-term support; trixie pins Python (3.13), numpy (2.2) and click (8.1), which come from Debian
# with its security updates. Never 3.4.0: it crashes at start on any external check.

FROM haproxy:3.2-trixie AS python
USER root
RUN set -eu; \
    ls /usr/lib/*-linux-gnu* > /base; \
    apt-get update; \
    apt-get install --yes --no-install-recommends python3-numpy python3-click python3-pip python3-hatchling
# Debian's numpy stands on the reference BLAS and LAPACK, which it does not load without: half the size of the OpenBLAS
# in PyPI's.
# Beside the standard library it is found without the module `site`, which would cost each check some milliseconds.
RUN set -eu; \
    lib=/python/usr/lib/python3.13; \
    mkdir -p /python/usr/bin "$lib"; \
    cp -P /usr/bin/python3 /usr/bin/python3.13 /python/usr/bin/; \
    cp -RL /usr/lib/python3.13/. /usr/lib/python3/dist-packages/numpy /usr/lib/python3/dist-packages/click "$lib"; \
    cd "$lib"; \
    # What is for developers: tests, headers, type stubs, documentation, bytecode of unknown age.
    find . -depth \( -name __pycache__ -o -name test -o -name tests -o -name '*test*.so' \
        -o -type f ! -name '*.py' ! -name '*.so' \) -exec rm -r {} +; \
    # What the commands never open, of the standard library …
    rm -r _pydatetime.py _pydecimal.py _pyio.py _pyrepl _sysconfigdata* asyncio bdb.py concurrent ctypes curses dbm \
        doctest.py ftplib.py html http imaplib.py logging mailbox.py multiprocessing pdb.py pickletools.py pydoc* \
        smtplib.py sqlite3 statistics.py tarfile.py tomllib turtle.py unittest venv wsgiref xml xmlrpc zoneinfo; \
    find encodings -name '*.py' ! -name '__init__.py' ! -name 'a*.py' ! -name 'utf_8*.py' ! -name 'latin_1.py' \
        ! -name 'idna.py' ! -name 'punycode.py' -delete; \
    find lib-dynload -name '*.so' ! -name '_bz2.*' ! -name '_contextvars.*' ! -name '_csv.*' ! -name '_hashlib.*' ! -name '_lzma.*' \
        ! -name '_queue.*' ! -name '_ssl.*' ! -name 'mmap.*' ! -name 'termios.*' -delete; \
    # … and of numpy.
    cd numpy; \
    rm -r _core/_simd.* _pyinstaller char core f2py fft ma polynomial random rec strings testing typing; \
    # The libraries that these need and the base lacks.
    find /python -type f \( -name '*.so' -o -name python3.13 \) -exec ldd {} + \
        | awk '/=> \//{print $3}' | sort --unique | while read -r library; do \
            grep -qxF "${library##*/}" /base || cp --parents -L "/usr$library" /python; \
        done; \
    for package in python3.13-minimal python3-numpy python3-click libblas3 liblapack3 libgfortran5 libexpat1; do \
        cp --parents -L "/usr/share/doc/$package/copyright" /python; \
    done; \
    # Bytecode takes the place of the source: it is there once, and is never older than anything.
    python3 -I -m compileall -q -b -s /python "$lib"; \
    find "$lib" -name '*.py' -delete

FROM python AS package
WORKDIR /src
COPY pyproject.toml README.md deploy/start.sh ./
COPY deploy/version.py deploy/
COPY multicloud multicloud
# --build-arg BUILD_VERSION="$(python3 deploy/version.py)", which counts the commits, for `multicloud --version`.
ARG BUILD_VERSION
RUN set -eu; \
    lib=/package/usr/lib/python3.13; \
    pip install --quiet --no-index --no-deps --no-build-isolation --no-compile --target "$lib" .; \
    # -I and -S: nothing in the environment changes what runs, and nothing is searched for.
    sed -i '1s/$/ -IS/' "$lib"/bin/*; \
    mv "$lib/bin" /package/usr/bin; \
    install start.sh /package/usr/bin/multicloud-start; \
    rm "$lib/multicloud/py.typed"; \
    python3 -I -m compileall -q -b -s /package "$lib"; \
    find "$lib" -name '*.py' -delete; \
    # A configuration that was written for the shell version finds our commands at its places.
    mkdir /package/scripts; \
    ln -s /usr/bin/multicloud-check /package/scripts/check_server_https.sh; \
    ln -s /usr/bin/multicloud-reweigh /package/scripts/set_server_weights.sh

FROM haproxy:3.2-trixie
COPY --from=python /python /
COPY --from=package /package /
# The user `haproxy` cannot bind a socket in /var/run; this is its home.
ENV MULTICLOUD_SOCKET=/var/lib/haproxy/haproxy.sock
# Fails the build where the base has changed under us.
RUN multicloud config eu.example.com > /tmp/haproxy.cfg && haproxy -c -f /tmp/haproxy.cfg && rm /tmp/haproxy.cfg
EXPOSE 8080 8081 9000 9001
# HAProxy accepts and answers: its own page does. Whether the servers behind it are well is not this container's health.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD multicloud check --expect 200 --timeout 2 --connect "${ADDRESS:-127.0.0.1}" "http://localhost:${STATS_PORT:-9000}/"
# The base asks for SIGUSR1, with which HAProxy waits for its clients, longer than `docker stop` waits before it kills.
# To let them finish: docker stop --signal SIGUSR1 -t 60
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["multicloud-start"]
