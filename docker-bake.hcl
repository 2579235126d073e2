# Rendered by `comfypod render bake` from comfypod.lock.
#   docker buildx bake --load cpu-slim
#   REPOSITORY=ghcr.io/me/comfypod docker buildx bake --push

variable "REPOSITORY" {
  default = "comfypod"
}

group "default" {
  targets = ["4090-slim", "4090-full", "5090-slim", "5090-full", "cpu-slim", "cpu-full"]
}

target "4090-slim" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.4090"
  target     = "slim"
  platforms  = ["linux/amd64"]
  tags       = ["${REPOSITORY}:0.30.0-4090-slim-652ca9faf4a2", "${REPOSITORY}:4090-slim"]
}

target "4090-full" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.4090"
  target     = "full"
  platforms  = ["linux/amd64"]
  tags       = ["${REPOSITORY}:0.30.0-4090-full-652ca9faf4a2", "${REPOSITORY}:4090"]
}

target "5090-slim" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.5090"
  target     = "slim"
  platforms  = ["linux/amd64"]
  tags       = ["${REPOSITORY}:0.30.0-5090-slim-652ca9faf4a2", "${REPOSITORY}:5090-slim"]
}

target "5090-full" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.5090"
  target     = "full"
  platforms  = ["linux/amd64"]
  tags       = ["${REPOSITORY}:0.30.0-5090-full-652ca9faf4a2", "${REPOSITORY}:5090"]
}

target "cpu-slim" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.cpu"
  target     = "slim"
  platforms  = ["linux/amd64", "linux/arm64"]
  tags       = ["${REPOSITORY}:0.30.0-cpu-slim-652ca9faf4a2", "${REPOSITORY}:cpu-slim"]
}

target "cpu-full" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.cpu"
  target     = "full"
  platforms  = ["linux/amd64", "linux/arm64"]
  tags       = ["${REPOSITORY}:0.30.0-cpu-full-652ca9faf4a2", "${REPOSITORY}:cpu"]
}
