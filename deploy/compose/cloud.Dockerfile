# The emulator of AWS in a container: MiniStack with the stack of deploy/aws/template.yaml and the sample data. For
# experiments; deploy/local/cloud lists its differences from AWS. Its context is the folder deploy/.
FROM python:3.13-slim
WORKDIR /cloud
COPY local/requirements.txt .
RUN pip install --no-cache-dir --no-deps --only-binary :all: -r requirements.txt
# The sample is the same on each machine, so the image has it.
COPY local/sample/generate.py sample/
RUN python sample/generate.py /cloud/data
COPY local/sample/ sample/
COPY aws/template.yaml .
COPY local/cloud.py compose/cloud ./

RUN useradd --uid 10001 --user-group --create-home cloud
USER 10001
ENV PYTHONUNBUFFERED=1 GATEWAY_PORT=4566 BIND_HOST=0.0.0.0 ATHENA_ENGINE=duckdb LOG_LEVEL=WARNING \
    S3_DATA_DIR=/tmp/s3 PERSIST_STATE=0 S3_PERSIST=0
EXPOSE 4566
CMD ["./cloud"]
