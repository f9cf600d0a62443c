# runspan in a container: docker build -t runspan . && docker run --rm runspan --help
# compose.yaml runs it as the server of the stack.
# Bases are pinned by digest, and every package by the hashes in deploy/requirements.txt, which `make lock` writes.

FROM python:3.13.15-slim-bookworm@sha256:ed86c82274b3c69b52fb5820f358f0bd7df0b603332063cb5c6e32bd220c3e6e AS build
# For the native part, without which an export and a server are slower. Debian's name for its newest Rust ends in -web.
RUN apt-get update && apt-get install --yes --no-install-recommends cargo-web gcc libc6-dev rustc-web
WORKDIR /build
COPY deploy/requirements.txt ./
RUN python -m venv /opt/runspan && /opt/runspan/bin/pip install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY native native
# What is fetched here is pinned, with its hashes, in native/Cargo.lock, so that the build needs no network.
RUN cargo fetch --locked --manifest-path native/Cargo.toml
COPY src src
# setuptools and setuptools-rust are two of the packages above.
RUN CARGO_NET_OFFLINE=true /opt/runspan/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/runspan/bin/python -c "import runspan._native"

FROM python:3.13.15-slim-bookworm@sha256:ed86c82274b3c69b52fb5820f358f0bd7df0b603332063cb5c6e32bd220c3e6e
COPY --from=build /opt/runspan /opt/runspan
# A named volume takes its owner from the image's folder, so both are writable without root.
RUN useradd --system --uid 10001 --home-dir /var/lib/runspan runspan \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/runspan /var/lib/runspan-keys
USER 10001:10001
ENV PATH=/opt/runspan/bin:$PATH RUNSPAN_DATA=/var/lib/runspan PYTHONUNBUFFERED=1
WORKDIR /var/lib/runspan
EXPOSE 8321
# Loopback inside of the container, until it is told another address and has keys.
ENTRYPOINT ["runspan"]
CMD ["serve"]
