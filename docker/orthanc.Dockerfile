# The PACS that medsa is tested with: Debian's Orthanc and its DICOMweb plugin.
FROM debian:bookworm-slim
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends curl orthanc orthanc-dicomweb \
    && rm -rf /var/lib/apt/lists/*
COPY docker/orthanc.json /etc/medsa/orthanc.json
RUN install -d -o orthanc -g orthanc /var/lib/medsa-orthanc
USER orthanc
EXPOSE 8042
CMD ["Orthanc", "/etc/medsa/orthanc.json"]
