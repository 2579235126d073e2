# Rendered by `comfypod render bake` from comfypod.lock.
# It tries nothing, so what it makes is called untried; `comfypod build` tries an image and names it.
#   docker buildx bake --load --set '*.platform=linux/amd64' cpu-slim

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
  tags       = ["${REPOSITORY}:4090-slim-untried"]
}

target "4090-full" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.4090"
  target     = "full"
  platforms  = ["linux/amd64"]
  tags       = ["${REPOSITORY}:4090-full-untried"]
}

target "5090-slim" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.5090"
  target     = "slim"
  platforms  = ["linux/amd64"]
  tags       = ["${REPOSITORY}:5090-slim-untried"]
}

target "5090-full" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.5090"
  target     = "full"
  platforms  = ["linux/amd64"]
  tags       = ["${REPOSITORY}:5090-full-untried"]
}

target "cpu-slim" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.cpu"
  target     = "slim"
  platforms  = ["linux/amd64", "linux/arm64"]
  tags       = ["${REPOSITORY}:cpu-slim-untried"]
}

target "cpu-full" {
  context    = "."
  dockerfile = "Dockerfiles/Dockerfile.cpu"
  target     = "full"
  platforms  = ["linux/amd64", "linux/arm64"]
  tags       = ["${REPOSITORY}:cpu-full-untried"]
}
