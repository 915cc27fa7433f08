package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
)

const maxMessageBytes = 8 << 20

// service speaks gRPC: HTTP/2 POST, messages with five bytes before each, the status in a trailer.
type service struct {
	endpoint string
	client   *http.Client
}

// dial takes PEM files. It connects when first used.
func dial(endpoint, caFile, certificateFile, keyFile string) (*service, error) {
	authority, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, errors.New("no certificate in the CA file")
	}
	own, err := tls.LoadX509KeyPair(certificateFile, keyFile)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		Protocols: protocols,
		TLSClientConfig: &tls.Config{
			RootCAs:      roots,
			Certificates: []tls.Certificate{own},
			MinVersion:   tls.VersionTLS13,
		},
	}
	return &service{endpoint, &http.Client{Transport: transport}}, nil
}

// call sends one message and hands each answer to `each`, in their order.
func (s *service) call(method string, message []byte, each func(fields) error) error {
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	request, err := http.NewRequest(
		"POST", "https://"+s.endpoint+method, bytes.NewReader(append(body, message...)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	response, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != 200 || response.ProtoMajor != 2 {
		return fmt.Errorf("not gRPC: %s %s", response.Proto, response.Status)
	}
	var prefix [5]byte
	for {
		if _, err := io.ReadFull(response.Body, prefix[:]); err == io.EOF {
			return statusOf(response)
		} else if err != nil {
			return err
		}
		length := binary.BigEndian.Uint32(prefix[1:])
		if prefix[0] != 0 || length > maxMessageBytes {
			return errors.New("a compressed or too large message")
		}
		answer := make([]byte, length)
		if _, err := io.ReadFull(response.Body, answer); err != nil {
			return err
		}
		parsed, err := parseFields(answer)
		if err != nil {
			return err
		}
		if err := each(parsed); err != nil {
			return err
		}
	}
}

// statusOf is nil for OK; a call without a message has its status in the header instead.
func statusOf(response *http.Response) error {
	for _, where := range []http.Header{response.Trailer, response.Header} {
		switch status := where.Get("Grpc-Status"); status {
		case "":
			continue
		case "0":
			return nil
		default:
			return failure{"GRPC_" + status, where.Get("Grpc-Message")}
		}
	}
	return errors.New("the stream ended without a status")
}

// fields are those of one protobuf message: numbers by field, and bytes by field.
type fields struct {
	numbers map[uint64]uint64
	bytes   map[uint64][]byte
}

func parseFields(message []byte) (fields, error) {
	parsed := fields{map[uint64]uint64{}, map[uint64][]byte{}}
	malformed := errors.New("a malformed protobuf message")
	for len(message) > 0 {
		tag, n := binary.Uvarint(message)
		if n <= 0 {
			return parsed, malformed
		}
		message = message[n:]
		value, n := binary.Uvarint(message)
		if n <= 0 {
			return parsed, malformed
		}
		message = message[n:]
		switch tag & 7 {
		case 0:
			parsed.numbers[tag>>3] = value
		case 2:
			if value > uint64(len(message)) {
				return parsed, malformed
			}
			parsed.bytes[tag>>3], message = message[:value], message[value:]
		default:
			return parsed, malformed
		}
	}
	return parsed, nil
}

func (f fields) text(field uint64) string { return string(f.bytes[field]) }

func (f fields) message(field uint64) (fields, error) { return parseFields(f.bytes[field]) }

func appendBytes(message []byte, field uint64, value []byte) []byte {
	message = binary.AppendUvarint(message, field<<3|2)
	message = binary.AppendUvarint(message, uint64(len(value)))
	return append(message, value...)
}

func appendNumber(message []byte, field, value uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(message, field<<3), value)
}
