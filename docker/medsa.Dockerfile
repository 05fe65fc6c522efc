FROM python:3.11-slim-bookworm
ENV OMP_WAIT_POLICY=PASSIVE MALLOC_ARENA_MAX=2 \
    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824
WORKDIR /opt/medsa
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY apps apps
RUN useradd --create-home medsa && install -d -o medsa -g medsa /state && chown -R medsa:medsa apps
USER medsa
EXPOSE 8000
CMD ["monailabel", "start_server", "--app", "apps/medsa", "--studies", "http://pacs:8042/dicom-web", \
     "--host", "0.0.0.0", "--port", "8000", "--conf", "state", "/state"]
