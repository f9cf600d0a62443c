# runspan in a container: docker build -t runspan . && docker run --rm runspan --help
# compose.yaml runs it as the server of the stack.

FROM python:3.13.5-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/runspan && /opt/runspan/bin/pip install --no-cache-dir .

FROM python:3.13.5-slim-bookworm
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
